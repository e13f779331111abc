"""The verb `gc`: what killed runs left is found, counted and removed, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import time

from click.testing import CliRunner

import cli
from featurecache.stores import open_store
from pipelines.gc import GcConfig
from pipelines.gc import run as gc
from tests.featurecache.stores.samples import files
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


def test_chunks_that_no_ledger_names_and_pieces_of_the_table_are_removed_and_committed_rows_stay(tmp_path):
    store = made_store(tmp_path / "x.zarr", stop_at=48)
    reader = open_store(store)
    kept = reader.read("embedding", slice(0, 48)).copy()
    lost = store / "layers/cls/01/c/7/0/0"
    lost.parent.mkdir(parents=True)
    lost.write_bytes(b"1234567")
    piece = store / ".sample_id~c~0.grown.tmp"
    piece.write_bytes(b"12")

    report = gc(GcConfig(store=store))

    assert {(path, size) for path, _, size in report.found} == {(str(lost), 7), (str(piece), 2)}
    assert not lost.exists()
    assert not piece.exists()
    assert open_store(store).missing() == [range(48, 120)]
    assert (open_store(store).read("embedding", slice(0, 48)) == kept).all()
    assert gc(GcConfig(store=store)).found == ()


def test_an_empty_side_of_a_file_is_removed_once_it_is_quiet_and_a_side_that_is_a_store_stays(tmp_path):
    made_store(tmp_path / "done.h5")
    made_store(tmp_path / "going.h5", stop_at=48)
    side = tmp_path / "done.h5.zarr"
    (side / "embedding").mkdir(parents=True)

    assert gc(GcConfig(store=tmp_path)).found == ()
    for path in (side / "embedding", side):
        os.utime(path, (time.time() - 9999,) * 2)
    report = gc(GcConfig(store=tmp_path))

    assert [(path, what) for path, what, _ in report.found] == [(str(side), "side of a file that is finished")]
    assert not side.exists()
    assert open_store(tmp_path / "done.h5").finished
    assert open_store(tmp_path / "going.h5").missing() == [range(48, 120)]


def test_creations_that_were_killed_are_removed_through_the_command_beside_a_store_of_their_name(tmp_path):
    store = made_store(tmp_path / "x.zarr")
    mine = tmp_path / f".x.zarr.{socket.gethostname()}.{GONE}.tmp"
    others = tmp_path / f".y.zarr.{socket.gethostname()}.{GONE}.tmp"
    for place in (mine, others):
        place.mkdir()
        (place / "zarr.json").write_bytes(b"12345")

    result = CliRunner().invoke(cli.main, ["gc", str(store), "--json"])

    assert result.exit_code == 0
    assert json.loads(result.output)["found"] == [
        {"path": str(mine), "what": "unfinished creation or copy", "bytes": 5}
    ]
    assert not mine.exists()
    assert others.exists()
