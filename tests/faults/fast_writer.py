"""A writer that imports the store room and NumPy, and no more: it starts in milliseconds, to be killed many times."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from featurecache.features import ArraySpec, Header
from featurecache.stores import create_store, open_store, store_exists
from tests.faults.forks import serve_calls
from tests.featurecache.stores.samples import header as plain_header
from tests.featurecache.stores.samples import table

ROWS, BATCH, WIDTH = 2048, 64, 48
ARRAYS = (ArraySpec("embedding", (WIDTH,), "float16"), ArraySpec("layers/cls/03", (WIDTH,), "float32"))
PROGRAM = "from tests.faults.fast_writer import serve; serve()"


def header() -> Header:
    return dataclasses.replace(plain_header(ROWS), arrays=ARRAYS, layers=(), tokens=())


def values(rows: range, spec: ArraySpec) -> np.ndarray:
    """Return (B, 1, D) that are a fixed function of the row."""
    made = np.sin(np.arange(rows.start, rows.stop)[:, None, None] * 0.37 + np.arange(WIDTH) + len(spec.name))
    return made.astype(spec.dtype)


def write(words: list[str]) -> None:
    """Bring the store at a path to its end, a commit after every batch."""
    path = Path(words[0])
    if store_exists(path):
        store = open_store(path, writable=True)
    else:
        store = create_store(path, header(), table(ROWS), chunk_multiple=BATCH)
    for gap in store.missing():
        for start in range(gap.start, gap.stop, BATCH):
            rows = range(start, min(start + BATCH, gap.stop))
            store.begin(rows)
            store.write(rows, {spec.name: values(rows, spec) for spec in ARRAYS}, {})
            store.commit()
    if not store.finished:
        store.finish()
    store.close()
    assert "torch" not in sys.modules, "the store room imports torch"
    print("written without torch")


def serve() -> None:
    """Answer calls of `write`; what a store needs is imported before the first fork."""
    for suffix in (".zarr", ".h5"):
        store_exists(Path(f"nothing{suffix}"))
    serve_calls(write)
