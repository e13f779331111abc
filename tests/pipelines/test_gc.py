"""The verb `gc`: what killed runs left is found, counted and removed, and nothing else."""

from __future__ import annotations

import os
import socket
import time

from featurecache.stores import open_store
from pipelines.gc import GcConfig
from pipelines.gc import run as gc
from tests.featurecache.stores.contract import files
from tests.pipelines.stores import made_store

GONE = 2**22 + 17
"""No process has this number."""


def test_leftovers_are_named_with_their_bytes_and_removed_and_stores_stay(tmp_path):
    store = made_store(tmp_path / "x.zarr")
    before = files(store)
    creation = tmp_path / f".y.zarr.{socket.gethostname()}.{GONE}.tmp"
    creation.mkdir()
    (creation / "zarr.json").write_bytes(b"12345")
    trial = tmp_path / ".featurecache-plan-abc"
    trial.mkdir()
    os.utime(trial, (time.time() - 9999,) * 2)
    (store / ".zarr.json.17.tmp").write_bytes(b"123")

    asked = gc(GcConfig(store=tmp_path, dry_run=True))
    assert creation.exists()
    done = gc(GcConfig(store=tmp_path))

    assert asked.found == done.found
    assert sorted(size for _, _, size in done.found) == [0, 3, 5]
    assert "3 removed, 8 bytes" in done.tables()[0].notes[0]
    assert "3 would be removed, 8 bytes" in asked.tables()[0].notes[0]
    assert files(store) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zarr"]
    assert open_store(store).finished


def test_what_a_running_process_makes_is_left_alone(tmp_path):
    theirs = tmp_path / f".y.zarr.{socket.gethostname()}.{os.getppid()}.tmp"
    theirs.mkdir()
    elsewhere = tmp_path / ".y.zarr.elsewhere.17.tmp"
    elsewhere.mkdir()

    assert gc(GcConfig(store=tmp_path)).found == ()
    assert theirs.exists()
    assert elsewhere.exists()


def test_a_store_that_is_being_written_is_left_alone_and_named(tmp_path):
    store = made_store(tmp_path / "x.zarr", stop_at=48)
    writer = open_store(store, writable=True)
    (store / ".zarr.json.17.tmp").write_bytes(b"123")

    report = gc(GcConfig(store=store))

    assert (store / ".zarr.json.17.tmp").exists()
    assert f"is being written by process {os.getpid()}" in report.busy[0]
    writer.close()
