"""What a store lacks, as work to do: which rows of which arrays and views, and what a stopped run had begun."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

from featurecache.features import ArraySpec

if TYPE_CHECKING:
    from featurecache.stores import FeatureStore


def progress(store: FeatureStore) -> tuple[int, int]:
    """Return (rows committed in every array and view, rows that a stopped run had begun to compute, but not committed).

    Both of the rows that are this writer's share.
    """
    missing = overlaps(store.missing(), store.share)
    begun = sum(len(range(rows.start, min(rows.stop, store.interrupted_at))) for rows in missing)
    return len(store.share) - sum(map(len, missing)), begun


@dataclass(frozen=True, slots=True)
class Taken:
    """Consecutive rows of a store, and where they come to lie in another one."""

    store: Any
    rows: range
    at: int


def gaps_between(store: FeatureStore) -> list[range]:
    """Return the rows that are committed in every array and view, ascending and disjoint: what lies between the gaps."""
    edges = [0, *(edge for gap in store.missing() for edge in (gap.start, gap.stop)), store.header.rows]
    return [range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a <= b]


def overlaps(found: Iterable[range], rows: range) -> list[range]:
    """Return of ascending ranges what lies in `rows`."""
    cut = [range(max(one.start, rows.start), min(one.stop, rows.stop)) for one in found]
    return [one for one in cut if one]


@dataclass(frozen=True, slots=True)
class Gap:
    """Consecutive rows that all lack the same."""

    rows: range
    lacking: Mapping[ArraySpec, tuple[int, ...]]
    """Array -> views of it that are lacking, ascending."""

    @property
    def views(self) -> tuple[int, ...]:
        """Views that are lacking in some array, ascending."""
        return tuple(sorted({view for views in self.lacking.values() for view in views}))

    def arrays(self, view: int) -> list[ArraySpec]:
        """Return the arrays that lack this view."""
        return [spec for spec, views in self.lacking.items() if view in views]


def gaps(store: FeatureStore) -> Iterator[Gap]:
    """Yield what is lacking of this writer's share, in ascending and disjoint rows.

    After an extension that is not the same for every row.
    """
    header = store.header
    parts = list(product(header.arrays, range(header.views)))
    missing = {(spec, view): overlaps(store.missing([spec.name], [view]), store.share) for spec, view in parts}
    edges = sorted({edge for ranges in missing.values() for rows in ranges for edge in (rows.start, rows.stop)})
    for start, stop in pairwise(edges):
        lacking: dict[ArraySpec, tuple[int, ...]] = {}
        for spec, view in parts:
            if any(start in rows for rows in missing[spec, view]):
                lacking[spec] = (*lacking.get(spec, ()), view)
        if lacking:
            yield Gap(range(start, stop), lacking)
