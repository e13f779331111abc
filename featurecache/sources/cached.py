"""Rows of a store as training batches, gathered straight from the mapped chunks; touches no image and no backbone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.casting import as_tensor
from featurecache.errors import StoreContentsError
from featurecache.features import FeatureBatch
from featurecache.seeding import generator
from featurecache.sources import FeatureSource, Order
from featurecache.sources._ahead import Ahead, can_read_ahead
from featurecache.sources.statistics import statistics_of
from featurecache.stores import FeatureStore

Number = TypeVar("Number", bound=np.integer[Any])

BLOCK = 4096
"""Neighbouring rows that stay together in the order "blocks"."""
POOL = 16
"""Blocks that are shuffled into each other."""
WINDOW_BYTES = 32 * 2**20
"""What is read ahead of a sequential pass."""


@dataclass(frozen=True, slots=True)
class Walk:
    """Sequential batches of a source; every iteration starts again."""

    source: FeatureSource
    batch_size: int

    def __iter__(self) -> Iterator[FeatureBatch]:
        return self.source.batches(self.batch_size)


@dataclass(frozen=True, slots=True, eq=False)
class Ids(Sequence[str]):
    """Sample ids of some rows, looked up when asked for: no step of training asks, and text is slow to gather."""

    table: npt.NDArray[Any]
    """(N,) ids of all rows."""
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        found = self.table[self.rows[place]]
        return found.tolist() if isinstance(place, slice) else found


class Constants(Mapping[str, Tensor]):
    """Arrays of the classes of a store as float32 tensors, each read and checked when it is first asked for."""

    def __init__(self, store: FeatureStore) -> None:
        self._store, self._read = store, dict[str, Tensor]()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._read:
            spec = self._store.header.constant(name)
            self._read[name] = as_tensor(self._store.constant(name), spec.dtype).float()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter([spec.name for spec in self._store.header.constants])

    def __len__(self) -> int:
        return len(self._store.header.constants)


class CachedSource:
    """Some rows and some arrays of one store."""

    constants: Mapping[str, Tensor]
    """Arrays of the classes, e.g. text/embedding (C, P, E), float32."""

    def __init__(
        self, store: FeatureStore, arrays: Sequence[str], rows: npt.NDArray[np.int64], *, views: int = 1
    ) -> None:
        """Read `rows` of `arrays`; batches in any order but the sequential one draw each row from the first `views` views."""
        self.store, self.arrays, self.views = store, tuple(arrays), views
        self.rows: npt.NDArray[np.integer[Any]] = rows.astype(np.int32 if store.header.rows < 2**31 else np.int64)
        """Half as long as row numbers are elsewhere: they and their order of an epoch are what rows cost in memory."""
        self.constants = Constants(store)
        self._values = {(name, view): self._tensor(name, view) for name in arrays for view in range(views)}
        table = store.table()
        self._targets = torch.from_numpy(np.asarray(table.target))
        self._ids = np.asarray(table.sample_id)
        self._warm = False

    def __len__(self) -> int:
        return len(self.rows)

    def fits_memory(self) -> bool:
        """Return whether the arrays take less than half of the machine's memory, so that random access stays in RAM.

        Of a store that is not on this machine, whether they take less than it keeps of what it has fetched.
        """
        specs = [self.store.header.array(name) for name in self.arrays]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        room = getattr(self.store, "room", memory / 2)
        return sum(spec.row_bytes for spec in specs) * self.store.header.rows * self.views < room

    def _tensor(self, name: str, view: int) -> Tensor | None:
        mapped = self.store.mapped(name, view)
        return None if mapped is None else as_tensor(mapped, self.store.header.array(name).dtype)

    def labelled(self) -> CachedSource:
        """Return the same without the rows that have no target."""
        rows = self.rows[is_labelled(self._targets.numpy())[self.rows]]
        return CachedSource(self.store, self.arrays, rows.astype(np.int64), views=self.views)

    def targets(self, rows: npt.NDArray[np.integer[Any]]) -> Tensor:
        """Return (B,) or (B, K) targets of some rows."""
        return self._targets.index_select(0, torch.from_numpy(rows))

    def sample_ids(self, rows: npt.NDArray[np.int64]) -> Sequence[str]:
        """Return the B sample ids of some rows, each looked up when it is asked for."""
        return Ids(self._ids, rows)

    def gather(self, name: str, rows: npt.NDArray[np.int64], view: int = 0) -> Tensor:
        """Return (B, ...) values of one array, float32, of one view; 0 is the clean one."""
        return self._gather(name, view, rows, torch.from_numpy(rows))

    def _gather(self, name: str, view: int, rows: npt.NDArray[np.int64], places: Tensor) -> Tensor:
        values = self._values[name, view]
        if values is None:
            return as_tensor(self.store.read(name, rows, view), self.store.header.array(name).dtype).float()
        return values.index_select(0, places).float()

    def _drawn(self, name: str, views: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Tensor:
        """Return (B, ...) values of one array, each row of its own view."""
        found = torch.empty(len(rows), *self.store.header.array(name).tail)
        for view in np.unique(views):
            which = np.flatnonzero(views == view)
            picked = rows[which]
            found[torch.from_numpy(which)] = self._gather(name, int(view), picked, torch.from_numpy(picked))
        return found

    def batches(
        self, batch_size: int, *, order: Order = "sequential", seed: int = 0, start: int = 0
    ) -> Iterator[FeatureBatch]:
        """Yield every row once; see `FeatureSource`. A pass that is not sequential draws a view for every row."""
        rows = ordered(self.rows, order, seed)
        draws = self.views > 1 and order != "sequential"
        views = generator("views", seed).integers(0, self.views, len(rows)) if draws else None
        with self.reading(rows, order, clean=not draws) as reach:
            for first in range(start, len(rows), batch_size):
                piece = slice(first, first + batch_size)
                reach(min(first + batch_size, len(rows)))
                yield self.batch(rows[piece].astype(np.int64), None if views is None else views[piece])

    @contextmanager
    def reading(
        self, rows: npt.NDArray[np.integer[Any]], order: Order, *, clean: bool
    ) -> Iterator[Callable[[int], None]]:
        """Yield what is called with a place of `rows` before those up to it are gathered: their pages are then in memory.

        A random order has no next page, and what fits memory is read ahead in the first pass only.
        """
        mapped = [v for (_, view), v in self._values.items() if v is not None and (view == 0 or not clean)]
        if order == "shuffled" or self._warm or not mapped or not can_read_ahead():
            yield lambda stop: None
            return
        row_bytes = sum(values[0].nbytes for values in mapped)
        pool = BLOCK * POOL
        window = pool if order == "blocks" else min(pool, max(1, WINDOW_BYTES // row_bytes))
        ahead = Ahead(mapped, rows, window)
        try:
            yield ahead.reach
            self._warm = self.fits_memory()
        finally:
            ahead.close()

    def batch(self, rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64] | None = None) -> FeatureBatch:
        """Return the given rows as one batch, each of its own view; None: the clean view of all."""
        places = torch.from_numpy(rows)
        if views is None:
            arrays = {name: self._gather(name, 0, rows, places) for name in self.arrays}
        else:
            arrays = {name: self._drawn(name, views, rows) for name in self.arrays}
        return FeatureBatch(rows, Ids(self._ids, rows), self._targets.index_select(0, places), arrays)

    def walk(self, batch_size: int) -> Walk:
        """Return sequential batches that can be walked more than once."""
        return Walk(self, batch_size)

    def statistics(self, batch_size: int = 4096) -> dict[str, tuple[Tensor, Tensor]]:
        """Return array -> (mean, standard deviation) over the rows, (D,) float32, summed in float64 around the first row."""
        return statistics_of(self.batches(batch_size))


def is_labelled(targets: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return (N,) whether rows of a table have a target: (N,) classes or (N, K) numbers, -1 and NaN being none."""
    known: npt.NDArray[np.bool_] = targets >= 0 if targets.ndim == 1 else ~np.isnan(targets).any(1)
    return known


def split_rows(store: FeatureStore, *splits: str, labelled: bool = False) -> npt.NDArray[np.int64]:
    """Return the committed, readable rows of the given splits, ascending; `labelled`: only those with a target.

    They are marked, a byte each, before any is numbered: row numbers that come and go would take eight times as much.

    Raises:
        StoreContentsError: rows are missing from the store, so that a split would silently be a part of itself.
    """
    gaps = store.missing()
    if gaps:
        raise StoreContentsError(
            f"{store.path} is not finished: {sum(map(len, gaps))} of {store.header.rows} rows are not committed. "
            "Run the same extract-features command again; it goes on where it stopped."
        )
    column, among = np.asarray(store.table().split), np.zeros(store.header.rows, dtype=bool)
    for split in splits:
        among |= column == split
    among &= store.readable()
    if labelled:
        among &= is_labelled(np.asarray(store.table().target))
    return np.flatnonzero(among)


def ordered(rows: npt.NDArray[Number], order: Order, seed: int) -> npt.NDArray[Number]:
    """Return the rows in the order of one pass, a fixed function of `order` and `seed`, whatever integers they are."""
    if order == "sequential":
        return rows
    draw = generator("row order", seed)
    if order == "shuffled":
        return draw.permutation(rows)
    blocks = np.array_split(rows, max(1, len(rows) // BLOCK))
    mixed = [blocks[i] for i in draw.permutation(len(blocks))]
    pools = [np.concatenate(mixed[i : i + POOL]) for i in range(0, len(mixed), POOL)]
    return np.concatenate([draw.permutation(pool) for pool in pools])
