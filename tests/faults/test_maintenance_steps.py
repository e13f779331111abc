"""Commands on finished stores that die at any single step: nothing else is touched, and in the end it is as if they had not.

Those are `gc`, `merge` and `convert --dtype`, which leave their stores alone, growth by new samples, `delete` and `split`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featurecache.stores import examine_store, open_store, store_exists
from pipelines.delete import DeleteConfig
from pipelines.delete import run as delete
from pipelines.gc import GcConfig
from pipelines.gc import run as gc
from pipelines.maintain import ConvertConfig, convert
from pipelines.merge import MergeConfig
from pipelines.merge import run as merge
from pipelines.split import SplitConfig, divide
from pipelines.split import run as split
from tests.faults import dying
from tests.faults.conftest import COUNTED
from tests.faults.dying import die
from tests.faults.extent import sampled
from tests.faults.operations import NOBODY
from tests.featurecache.stores.samples import BATCH, files, values
from tests.featurecache.stores.test_maintaining import made, table
from tests.pipelines.stores import made_store

ROWS = 80


def collect(place: Path) -> None:
    gc(GcConfig(store=place))


def narrow(suffix: str) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        convert(ConvertConfig(store=place / "x.zarr", out=place / f"made{suffix}", dtype="float16"))

    return act


def put_together(suffix: str) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        merge(MergeConfig(stores=(place / "x.zarr", place / "y.zarr"), out=place / f"made{suffix}"))

    return act


def left_over(place: Path) -> None:
    """Leave what killed writers leave, beside a finished store and one that goes on."""
    made_store(place / "x.zarr", rows=ROWS, arrays=("embedding",))
    made_store(place / "y.zarr", rows=ROWS, arrays=("embedding",), stop_at=48)
    (place / "y.zarr/.zarr.json.17.tmp").write_bytes(b"cut off")
    for name in ("a.zarr", "b.zarr", "c.zarr", "d.zarr"):
        creation = place / f".{name}.{socket.gethostname()}.{NOBODY}.tmp"
        creation.mkdir()
        (creation / "zarr.json").write_bytes(b"{}")


def only_wide(place: Path) -> None:
    made_store(place / "x.zarr", rows=ROWS, arrays=("embedding",))


def two_sets(place: Path) -> None:
    made(place / "x.zarr", rows=40)
    made(place / "y.zarr", rows=40, first=500)


def _standing(place: Path) -> Path:
    """Return the store that stands there before the command."""
    return place / "x.zarr" if (place / "x.zarr").exists() else place / "x.h5"


def check_others(place: Path, expected: np.ndarray) -> None:
    """Read what was there as before; what is new is whole or not there."""
    np.testing.assert_array_equal(open_store(place / "x.zarr").to_numpy("embedding"), expected)
    for path in (place / "made.zarr", place / "made.h5"):
        if store_exists(path):
            assert open_store(path).finished
            assert examine_store(path).damages == ()


def grow(path: Path) -> None:
    """Let a store of 40 rows take in 60 more, and complete it."""
    store = open_store(path, writable=True)
    if store.header.rows == 40:
        store.grow(dataclasses.replace(store.header, rows=100, dataset={"name": "grown"}), table(100))
    for start in range(40, 100, BATCH):
        part = range(start, min(start + BATCH, 100))
        if store.missing() and part.start >= store.missing()[0].start:
            store.write(part, values(part), {})
            store.commit()
    if not store.finished:
        store.finish()
    store.close()


def erase(path: Path) -> None:
    delete(DeleteConfig(store=path, ids=("id 3", "id 35")))


DIVISION = {"seed": 7, "test": 0.4, "val": 0.3}


def divide_anew(path: Path) -> None:
    split(SplitConfig(store=path, **DIVISION))


def check_divided(place: Path, expected: np.ndarray) -> None:
    """Every reader finds the splits of before or the new ones, never some of each, and the rule that is theirs."""
    path = _standing(place)
    store = open_store(path)
    before, header = table(40), store.header
    new = divide(header, before, SplitConfig(store=path, **DIVISION))
    is_new = list(map(str, store.table().split)) == new.split
    assert is_new or list(map(str, store.table().split)) == list(before.split)
    assert ("division" in header.dataset) == is_new
    pieces = [str(name) for start in range(0, 40, 8) for name in store.column("split", slice(start, start + 8))]
    assert pieces == list(map(str, store.table().split))
    assert examine_store(path).damages == ()
    np.testing.assert_array_equal(store.to_numpy("embedding"), expected)


def at(name: str, act: Callable[[Path], None]) -> Callable[[Path], None]:
    """Let what is done to a store be done to the one of that name in a place."""
    return lambda place: act(place / name)


def one_set(suffix: str) -> Callable[[Path], None]:
    def prepare(place: Path) -> None:
        made(place / f"x{suffix}", rows=40)

    return prepare


def check_held(place: Path, expected: np.ndarray) -> None:
    """A row is there whole, or it is one of two that are deleted; every other one is what it was."""
    store = open_store(_standing(place))
    gone = np.flatnonzero(store.status()[:40] == "deleted")
    assert set(gone) <= {3, 35}
    kept = np.setdiff1d(np.arange(40), gone)
    np.testing.assert_array_equal(store.read("embedding", kept), expected[kept])


def lasting(place: Path) -> dict[str, bytes]:
    """Return what is in a folder; of a lock only that it is there, for it names its process, and of what tells the time."""
    told = ("writer.lock", "provenance.jsonl")
    return {name: b"" if name.endswith(told) else content for name, content in files(place).items()}


ACTS = {
    "gc": (left_over, collect, check_others),
    "merge": (two_sets, put_together(".zarr"), check_others),
    "merge into one file": (two_sets, put_together(".h5"), check_others),
    "convert --dtype": (only_wide, narrow(".zarr"), check_others),
    "convert --dtype into one file": (only_wide, narrow(".h5"), check_others),
    "growth": (one_set(".zarr"), at("x.zarr", grow), check_held),
    "growth of one file": (one_set(".h5"), at("x.h5", grow), check_held),
    "delete": (one_set(".zarr"), at("x.zarr", erase), check_held),
    "delete from one file": (one_set(".h5"), at("x.h5", erase), check_held),
    "split": (one_set(".zarr"), at("x.zarr", divide_anew), check_divided),
    "split of one file": (one_set(".h5"), at("x.h5", divide_anew), check_divided),
}
"""Name -> what stands there, the command, and what a reader must find wherever it died."""


@pytest.mark.parametrize("name", ACTS)
def test_whatever_step_is_the_last_the_end_is_the_same(name, tmp_path, monkeypatch, record_property):
    # an fsync changes nothing that a kill leaves behind
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(dying, "STEPS", tuple(step for step in dying.STEPS if step != "fsync"))
    monkeypatch.setattr("featurecache.stores._chunks.PAGE", 64)  # so that a small store has several chunks
    monkeypatch.setattr("featurecache.stores._layout.SMALLEST_TABLE_CHUNK", 16)  # its row table too
    monkeypatch.setattr("featurecache.stores._layout.TABLE_CHUNK", 16)
    prepare, act, check = ACTS[name]
    fresh, whole = tmp_path / "fresh", tmp_path / "whole"
    fresh.mkdir()
    prepare(fresh)
    shutil.copytree(fresh, whole)
    act(whole)
    reference = lasting(whole)
    expected = open_store(_standing(fresh)).to_numpy("embedding")
    shutil.copytree(fresh, tmp_path / "counted")
    count = die(act, tmp_path / "counted", last=-1)
    assert count > 8

    tried = sampled(range(1, count + 1), 5)
    for last in tried:
        place = tmp_path / str(last)
        shutil.copytree(fresh, place)
        assert die(act, place, last) == 0
        check(place, expected)
        act(place)
        assert lasting(place) == reference, f"killed at step {last}"
        shutil.rmtree(place)

    record_property(COUNTED, ["death at a step", name, len(tried), f"of {count} steps"])
