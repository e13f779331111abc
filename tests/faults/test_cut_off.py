"""A growth or a deletion that is killed at its every step: what `verify` says of the store, and what a repair makes of it."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from featurecache.stores import _ledger, examine_store, mend_store, open_store
from featurecache.stores import zarr as zarr_stores
from featurecache.stores._second_copy import COPY, copy_in
from tests.faults import dying
from tests.faults.dying import die
from tests.faults.extent import ALL
from tests.faults.test_bit_flips import flip
from tests.faults.test_maintenance_steps import grow, lasting
from tests.featurecache.stores.samples import said, values
from tests.featurecache.stores.test_maintaining import made, small_chunks, table

__all__ = ["small_chunks"]

ERASED = (3, 35)


class Remade:
    """What the store of these tests is made of; deleted rows too, which a repair must not give back."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def table(self):
        return table(self._rows)

    def classes(self, classes: range):
        return {name: whole[..., classes.start : classes.stop, :, :] for name, whole in said().items()}

    def rows(self, rows: range, lacking, skipped):
        yield rows, {spec.name: values(rows)[spec.name] for spec in lacking}


def erase(path: Path) -> None:
    store = open_store(path, writable=True)
    store.delete(ERASED)
    store.close()


@pytest.mark.parametrize("act", [grow, erase])
def test_what_was_cut_off_is_no_damage_and_a_repair_ends_it(act, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(dying, "STEPS", tuple(name for name in dying.STEPS if name != "fsync"))
    fresh = made(tmp_path / "fresh.zarr", rows=40)
    seen: set[str] = set()

    for last in itertools.count(1, 1 if ALL else 5):
        path = tmp_path / f"{last}.zarr"
        shutil.copytree(fresh, path)
        if die(act, path, last):
            break
        found = examine_store(path)
        assert found.damages == (), f"before step {last}"
        before = open_store(path)
        told = (before.header.rows, tuple(np.flatnonzero(before.status() == "deleted")))
        assert mend_store(path, Remade(found.header.rows)) == []
        assert examine_store(path).damages == ()
        assert not list(path.rglob("*.tmp"))
        after = open_store(path)
        assert (after.header.rows, tuple(np.flatnonzero(after.status() == "deleted"))) >= told
        for row in np.flatnonzero(after.status() == "deleted"):
            assert not after.read("embedding", slice(row, row + 1)).any()
        seen |= set(found.remarks)
        act(path)
        shutil.rmtree(path)

    assert "an extension or a deletion was cut off while it ended: the next writer finishes it" in seen
    assert last > 4


@pytest.mark.parametrize("act", [grow, erase])
def test_a_lost_line_of_a_growth_or_a_deletion_is_in_the_second_copy(act, tmp_path, monkeypatch):
    path = made(tmp_path / "x.zarr", rows=40)
    monkeypatch.setattr(zarr_stores.ZarrStore, "finish", lambda store: None)
    act(path)
    before, records = lasting(path), _ledger.read_records(path / "ledger.jsonl")[0]
    changing = next(number for number, one in enumerate(records) if one["kind"] in ("extended", "deleted"))
    start = sum(len(_ledger.encode(record)) for record in records[:changing])

    flip(path / "ledger.jsonl", start + 30, 2)

    assert any(damage.file == "ledger.jsonl" and damage.way == "journal" for damage in examine_store(path).damages)
    mend_store(path, Remade(100 if act is grow else 40))
    mended = _ledger.read_records(path / "ledger.jsonl")[0]
    assert mended[: changing + 1] == records[: changing + 1]
    if act is erase:
        assert not open_store(path).read("embedding", np.array(ERASED)).any()
        assert lasting(path) == before


def test_a_copy_that_a_kill_left_behind_is_brought_up_to_date_by_the_next_writer(tmp_path, monkeypatch):
    path = made(tmp_path / "x.zarr", rows=40)
    monkeypatch.setattr(zarr_stores, "keep_copy", lambda folder, ledger: os.kill(os.getpid(), signal.SIGKILL))
    assert die(erase, path, 9999) == 0, "it was killed"
    monkeypatch.undo()
    assert b'"deleted"' not in (path / COPY).read_bytes()
    assert open_store(path).status()[3] == "deleted"

    open_store(path, writable=True).close()

    assert copy_in(path) is not None
    assert b'"deleted"' in (path / COPY).read_bytes()
