"""A writer that dies at any single step of writing, committing, sealing or extending is as if it had only been late.

Every call that changes a file is a step. A fork is killed before its n-th step, for every n (in the middle of it, where it
is a write of features), and whoever comes next must find a store that opens, and bring it to the same end.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.features import ArraySpec, Header, Layer
from featurecache.stores import create_store, examine_store, gaps, lacking, open_store, united
from tests.faults.conftest import COUNTED
from tests.faults.dying import die
from tests.faults.extent import sampled
from tests.featurecache.stores.samples import files, header, table

ROWS, BATCH, WIDTH = 16, 8, 4
FIRST = ArraySpec("embedding", (WIDTH,), "float16")
LATER = ArraySpec("layers/cls/03", (WIDTH,), "float16")
SAID = ArraySpec("text/embedding", (2, 1, WIDTH), "float16")


def narrow() -> Header:
    return dataclasses.replace(header(ROWS), arrays=(FIRST,), layers=(), tokens=())


def wide() -> Header:
    return dataclasses.replace(
        narrow(), backbone={"name": "test", "views": {"seed": 0}}, views=2, arrays=(FIRST, LATER),
        layers=(Layer(3, WIDTH, "norm"),), tokens=("cls",), constants=(SAID,), prompts=("{}",),
    )  # fmt: skip


def said(classes: range) -> dict[str, np.ndarray]:
    return {"text/embedding": (np.arange(2 * WIDTH, dtype=np.float16).reshape(SAID.tail) + 1)[list(classes)]}


def values(rows: range, spec: ArraySpec, views: Sequence[int]) -> np.ndarray:
    numbers = np.arange(rows.start, rows.stop)[:, None, None] + 50 * np.asarray(views)[:, None]
    return (numbers + np.arange(WIDTH) / 8 + len(spec.name)).astype(np.float16)


def complete(store: Any) -> None:
    for gap in gaps(store):
        views = {spec.name: numbers for spec, numbers in gap.lacking.items()}
        for start in range(gap.rows.start, gap.rows.stop, BATCH):
            rows = range(start, min(start + BATCH, gap.rows.stop))
            store.begin(rows)
            skipped = {9: "truncated"} if 9 in rows else {}
            written = {spec.name: values(rows, spec, numbers) for spec, numbers in gap.lacking.items()}
            store.write(rows, written, skipped, views)
            store.commit()
    if not store.finished:
        store.finish()


def work(path: Path, first: Header) -> None:
    """Bring whatever is at `path` to a finished store of the wide header, as an extraction and its extension would."""
    if path.exists():
        store = open_store(path, writable=True)
    else:
        store = create_store(path, first, table(ROWS), chunk_multiple=BATCH, constants=said)
    complete(store)
    if lacking(path, store.header, wide()):
        store.extend(united(store.header, wide()), chunk_multiple=BATCH, constants=said)
        complete(store)
    store.close()


def narrowed(path: Path) -> None:
    """Work as an extraction of the narrow header that is then extended."""
    work(path, narrow())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("stores") / "whole.zarr"
    work(path, wide())
    return files(path)


def test_whatever_step_is_the_last_the_end_is_the_same(whole, tmp_path, monkeypatch, record_property):
    count = die(narrowed, tmp_path / "counted.zarr", last=-1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    assert count > 50

    tried = sampled(range(1, count + 1), 25)
    for last in tried:
        path = tmp_path / f"{last}.zarr"
        assert die(narrowed, path, last) == 0
        if path.exists():
            check_readable(path)
            assert examine_store(path).damages == (), f"killed at step {last}"
        work(path, narrow())
        assert files(path) == whole, f"killed at step {last}"

    assert not list(tmp_path.glob(".*")), "leftovers of creations"
    record_property(COUNTED, ["death at a step", "writing and extending", len(tried), f"of {count} steps"])


def check_readable(path: Path) -> None:
    """Read what the ledger calls committed, as a reader that comes between a kill and the next writer."""
    store = open_store(path)
    for spec, view in itertools.product(store.header.arrays, range(store.header.views)):
        missing = store.missing([spec.name], [view])
        for row in range(ROWS):
            if not any(row in gap for gap in missing):
                stored = store.read(spec.name, slice(row, row + 1), view)
                np.testing.assert_array_equal(stored, values(range(row, row + 1), spec, [view])[:, 0])
    for spec in store.header.constants:
        np.testing.assert_array_equal(store.constant(spec.name), said(range(2))[spec.name])
