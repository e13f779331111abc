"""What a store lacks, as work to do: which rows of which arrays, and what a stopped run had begun."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from featurecache.features import ArraySpec

if TYPE_CHECKING:
    from featurecache.stores import FeatureStore


def progress(store: FeatureStore) -> tuple[int, int]:
    """Return (rows committed in every array, rows that a stopped run had begun to compute, but not committed)."""
    missing = store.missing()
    begun = sum(len(range(rows.start, min(rows.stop, store.interrupted_at))) for rows in missing)
    return store.header.rows - sum(map(len, missing)), begun


def gaps(store: FeatureStore) -> Iterator[tuple[range, list[ArraySpec]]]:
    """Yield (rows, the arrays that lack them), ascending: after an extension not every array lacks the same rows."""
    missing = {spec: store.missing([spec.name]) for spec in store.header.arrays}
    edges = sorted({edge for ranges in missing.values() for rows in ranges for edge in (rows.start, rows.stop)})
    for start, stop in pairwise(edges):
        arrays = [spec for spec, ranges in missing.items() if any(start in rows for rows in ranges)]
        if arrays:
            yield range(start, stop), arrays
