"""A small finished store whose features are known, for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.datasets import RowTable
from featurecache.features import ArraySpec, Header, Layer, as_numbers
from featurecache.stores import FeatureStore, create_store, open_store

WIDTH = 16
SKIPPED = 7


def specs(dtype: str) -> tuple[ArraySpec, ...]:
    return tuple(ArraySpec(name, (WIDTH,), dtype) for name in ("embedding", "layers/cls/00", "layers/cls/01"))


def made(rows: int, number: int) -> npt.NDArray[np.float32]:
    """Features of array `number`, (N, D): random; one constant column, one with a large offset and a small spread."""
    values = np.random.default_rng(number).standard_normal((rows, WIDTH)).astype(np.float32)
    values[:, 1] = 3.0
    values[:, 2] = 1000 + np.arange(rows) % 3
    return values


def as_stored(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.generic]:
    """Round as the store's dtype does; bfloat16 by cutting, which is exact to compare with."""
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def unfinished_store(path: Path, rows: int, dtype: str = "float16", stop: int | None = None) -> FeatureStore:
    """A store with its first `stop` rows committed, still open for writing; row `SKIPPED` could not be read."""
    arrays = specs(dtype)
    header = Header(
        backbone={"name": "test"}, dataset={"fingerprint": "0"}, rows=rows, views=1, task="classification",
        class_names=("a", "b", "c"), layers=(Layer(0, WIDTH, "norm"), Layer(1, WIDTH, "norm")), tokens=("cls",),
        arrays=arrays,
    )  # fmt: skip
    table = RowTable(
        sample_id=[f"{row % 3}/{row}.jpg" for row in range(rows)], target=np.arange(rows) % 3,
        split=[("train", "train", "test", "val")[row % 4] for row in range(rows)], domain=[""] * rows, group=[""] * rows,
    )  # fmt: skip
    store = create_store(path, header, table, chunk_multiple=32)
    written = range(rows if stop is None else stop)
    values = {spec.name: as_stored(made(rows, i), dtype)[: len(written), None] for i, spec in enumerate(arrays)}
    store.write(written, values, {SKIPPED: "the file is empty"})
    store.commit()
    return store


def finished_store(path: Path, rows: int, dtype: str = "float16") -> FeatureStore:
    """A finished store, opened for reading."""
    store = unfinished_store(path, rows, dtype)
    store.finish()
    store.close()
    return open_store(path)


def expected(rows: int, number: int, dtype: str = "float16") -> npt.NDArray[np.float32]:
    """What a reader of array `number` must see, (N, D) float32."""
    return as_numbers(as_stored(made(rows, number), dtype), dtype).astype(np.float32)
