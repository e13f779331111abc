"""Rows, arrays and classes of small stores, each value a function of its row or class; and what is in a store's files."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np

from featurecache.datasets import RowTable
from featurecache.features import ArraySpec, Header, Layer
from featurecache.stores import of_classes

ROWS, WIDTH, BATCH = 1000, 24, 32
ARRAYS = (
    ArraySpec("embedding", (WIDTH,), "float16"),
    ArraySpec("layers/cls/00", (WIDTH,), "float32"),
    ArraySpec("layers/patch-grid/00", (4, WIDTH), "float16"),
)


CLASSES = ("cat", "dog", "emu", "fox", "gnu")
CONSTANTS = (
    ArraySpec("text/embedding", (5, 2, 3), "float32"),
    ArraySpec("text/eot", (4, 5, 2, 6), "float32"),
    ArraySpec("text/projection", (1, 6, 3), "float32"),
)
"""The last one is of all classes alike."""
PROMPTS = ("a photo of a {}.", "art of the {}")


def header(rows: int = ROWS) -> Header:
    return Header(
        backbone={"name": "test"}, dataset={"fingerprint": "0"}, rows=rows, views=1, task="classification",
        class_names=("a", "b"), layers=(Layer(0, WIDTH, "norm"),), tokens=("cls", "patch-grid:2"), arrays=ARRAYS,
    )  # fmt: skip


def table(rows: int = ROWS) -> RowTable:
    ids = [f"class é/{row}.jpg" for row in range(rows)]
    return RowTable(
        sample_id=ids, target=np.arange(rows) % 2, split=["train"] * rows, domain=[""] * rows, group=[""] * rows
    )


def speaking(rows: int = ROWS) -> Header:
    """Return the same header with arrays of the classes."""
    return dataclasses.replace(header(rows), class_names=CLASSES, constants=CONSTANTS, prompts=PROMPTS)


def said(classes: range = range(len(CLASSES))) -> dict[str, np.ndarray]:
    """Values of the classes that are a fixed function of the class."""
    made = {}
    for spec in CONSTANTS:
        whole = np.sin(np.arange(np.prod(spec.tail), dtype=np.float32) + len(spec.name)).reshape(spec.tail)
        made[spec.name] = of_classes(spec, whole, classes)
    return made


def values(rows: range) -> dict[str, np.ndarray]:
    """Features that are a fixed function of the row."""
    made = {}
    for number, spec in enumerate(ARRAYS):
        shape = (len(rows), 1, *spec.tail)
        base = np.arange(rows.start, rows.stop).reshape(-1, *[1] * (len(shape) - 1))
        offsets = np.arange(int(np.prod(spec.tail))).reshape(1, 1, *spec.tail)
        made[spec.name] = (np.sin(base * 0.37 + offsets + number) * 3).astype(spec.storage_dtype)
    return made


def fill(store, commit_every: int = 4, stop_after: int | None = None, delay: float = 0.0) -> None:
    """Write what is missing in batches, as an extraction does."""
    for gap in store.missing():
        for number, start in enumerate(range(gap.start, gap.stop, BATCH)):
            rows = range(start, min(start + BATCH, gap.stop))
            store.begin(rows)
            time.sleep(delay)
            store.write(rows, values(rows), {40: "truncated"} if 40 in rows else {})
            if number % commit_every == commit_every - 1:
                store.commit()
            if stop_after is not None and number + 1 >= stop_after:
                return
    store.commit()


def files(folder: Path) -> dict[str, bytes]:
    """Return name -> content of the files of a store; of one file, where the store is one."""
    if folder.is_file():
        return {"": folder.read_bytes()}
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
