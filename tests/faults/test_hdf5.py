"""A writer of an HDF5 store that dies at any single step, of the assembly of the file too, is as if it had only been late."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from featurecache.errors import StoreError
from featurecache.stores import create_store, lacking, open_store, store_exists, united
from tests.faults import dying
from tests.faults.conftest import COUNTED
from tests.faults.dying import die
from tests.faults.extent import ALL, sampled
from tests.faults.test_crash_points import BATCH, ROWS, check_readable, complete, narrow, said, wide
from tests.featurecache.stores.samples import files, table


def work(path: Path, first: Any) -> None:
    """Bring whatever is at `path` to a finished file of the wide header, as an extraction and its extension would."""
    if store_exists(path):
        store = open_store(path, writable=True)
    else:
        store = create_store(path, first, table(ROWS), chunk_multiple=BATCH, constants=said)
    complete(store)
    if lacking(path, store.header, wide()):
        store.extend(united(store.header, wide()), chunk_multiple=BATCH, constants=said)
        complete(store)
    store.close()


def announced(act: Callable[..., Any]) -> Callable[..., Any]:
    """Return `act` as one more of the steps that are counted: a call that does nothing goes before it."""

    def step(*arguments: Any, **named: Any) -> Any:
        os.getppid()
        return act(*arguments, **named)

    return step


def announcing(path: Path) -> None:
    """Work, with every change of an HDF5 file as a step too."""
    for owner, name in ((h5py.Dataset, "__setitem__"), (h5py.Group, "create_dataset")):
        setattr(owner, name, announced(getattr(owner, name)))
    work(path, narrow())


def left_by_a_kill(folder: Path) -> int:
    """Return what tells the states of a folder apart: names without the process in them, and contents."""
    return hash(tuple((re.sub(r"\.\d+\.tmp", ".tmp", name), content) for name, content in files(folder).items()
                      if not name.endswith(".lock")))  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return the Zarr side of a store in which every row is committed; the steps until then are those of a Zarr store."""
    store = create_store(tmp_path / "written.h5", narrow(), table(ROWS), chunk_multiple=BATCH)
    store.finish = lambda: None
    complete(store)
    store.close()
    return (tmp_path / "written.h5.zarr").rename(tmp_path / "written")


def test_whatever_step_is_the_last_the_end_is_the_same_file(written, tmp_path, monkeypatch, record_property):
    # an fsync changes nothing that a kill leaves behind; the Zarr store's own test stops at each of them too
    monkeypatch.setattr(dying, "STEPS", (*(name for name in dying.STEPS if name != "fsync"), "getppid"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    work(tmp_path / "whole.h5", wide())
    whole = files(tmp_path / "whole.h5")
    shutil.copytree(written, tmp_path / "counted.h5.zarr")
    count = die(announcing, tmp_path / "counted.h5", last=-1)
    assert count > 100

    met: set[int] = set()
    tried = sampled(range(1, count + 1), 15)
    for last in tried:
        place = tmp_path / str(last)
        path = place / "x.h5"
        shutil.copytree(written, place / "x.h5.zarr")
        assert die(announcing, path, last) == 0
        state = left_by_a_kill(place)
        if state not in met:
            check_readable(path)
            work(path, narrow())
            assert files(path) == whole, f"killed at step {last}"
            assert [left.name for left in place.iterdir()] == ["x.h5"]
        met.add(state)
    assert len(met) > (60 if ALL else 8)
    record_property(COUNTED, ["death at a step", "assembly and extension of a file", len(tried), f"of {count} steps"])


def test_no_room_for_the_file_leaves_the_zarr_side_whole_and_no_broken_file(tmp_path):
    path = tmp_path / "x.h5"
    store = create_store(path, wide(), table(ROWS), chunk_multiple=BATCH, constants=said)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))

    sealed = store._held.finish
    store._held.finish = lambda: (sealed(), fill_the_disk())
    try:
        with pytest.raises(StoreError, match=r"cannot write .*x.h5: .*Nothing was lost"):
            complete(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    store.close()

    assert [place.name for place in tmp_path.iterdir()] == ["x.h5.zarr"]
    check_readable(path)
    work(path, wide())
    assert [place.name for place in tmp_path.iterdir()] == ["x.h5"]
