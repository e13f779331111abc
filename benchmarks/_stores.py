"""A finished store of random features, made by the project's own writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurecache.datasets import RowTable
from featurecache.features import Header
from featurecache.stores import FeatureStore, create_store, open_store

WRITTEN = 1024
"""Rows drawn at a time."""


def random_store(path: Path, header: Header, splits: Sequence[str] = ("train",)) -> FeatureStore:
    """Write the store that `header` describes, every row labelled, of these splits in turn, and open it for reading."""
    rng, rows, nothing = np.random.default_rng(0), header.rows, [""] * header.rows
    table = RowTable(
        sample_id=[f"class/{row:08d}.jpg" for row in range(rows)], target=np.arange(rows) % len(header.class_names),
        split=[splits[row % len(splits)] for row in range(rows)], domain=nothing, group=nothing,
    )  # fmt: skip
    store = create_store(path, header, table, chunk_multiple=64)
    for start in range(0, rows, WRITTEN):
        part = range(start, min(start + WRITTEN, rows))
        drawn = {spec.name: rng.standard_normal((len(part), 1, *spec.tail), dtype=np.float32) for spec in header.arrays}
        store.write(part, {spec.name: drawn[spec.name].astype(spec.storage_dtype) for spec in header.arrays}, {})
    store.commit()
    store.finish()
    store.close()
    return open_store(path)
