"""Rows of a store for people's own torch loops: a map-style data set and an iterable one, both safe in `DataLoader` workers.

Both travel to a worker as a path and open the store anew there, so nothing of the features is copied or pickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
import torch.utils.data
from torch import Tensor

from featurecache.checks import check
from featurecache.errors import ConfigError
from featurecache.places import Place, Url, placed
from featurecache.registry import nearest
from featurecache.reports import Table
from featurecache.sources import Order
from featurecache.sources.cached import CachedSource, ordered, split_rows
from featurecache.stores import FeatureStore, open_store

Form = Literal["pair", "dict"]
"""(features, target), or {array: features, ..., "target", "row", "sample_id"}."""
Sample = Any
"""One sample, or a batch of them, in one of the forms."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of a store is asked for, in one form; reads rows once it is first asked, in whichever process that is."""

    store: Place
    arrays: tuple[str, ...]
    split: str | None
    views: tuple[int, ...]
    dtype: torch.dtype
    form: Form
    labelled: bool

    def __post_init__(self) -> None:
        many = len(self.arrays) > 1 and self.form == "pair"
        check(
            (len(self.arrays) > 0, "name at least one array, such as 'embedding'"),
            (len(self.views) > 0, "name at least one view; 0 is the clean one"),
            (not many, f"a pair holds one array, and {', '.join(self.arrays)} are asked for: give form='dict'"),
        )

    def opened(self) -> CachedSource:
        """Open the store and check what is asked of it.

        Raises:
            StoreContentsError: it is not finished, or holds no such array.
            ConfigError: it holds no such split or view.
        """
        store = open_store(self.store)
        known = sorted(set(np.asarray(store.table().split).tolist()))
        if self.split is not None and self.split not in known:
            near, held = nearest(str(self.split), known), ", ".join(map(repr, known))
            raise ConfigError([f"{store.path} holds no rows of the split {self.split!r}; it holds {held}.{near}"])
        rows = split_rows(store, *(known if self.split is None else (self.split,)))
        if not len(rows):
            asked = "any split" if self.split is None else f"the split {self.split!r}"
            raise ConfigError([f"{store.path} holds no rows of {asked} whose image could be read"])
        if beyond := [view for view in self.views if not 0 <= view < store.header.views]:
            raise ConfigError([f"{store.path} holds views 0 to {store.header.views - 1}, not {beyond[0]}"])
        source = CachedSource(store, self.arrays, rows, views=max(self.views) + 1)
        return source.labelled() if self.labelled else source

    def taken(self, source: CachedSource, rows: npt.NDArray[np.int64]) -> Sample:
        """Return the given rows as one batch: (B, ...) of one view, (B, V, ...) of several."""
        arrays = {name: self._values(source, name, rows) for name in self.arrays}
        targets = source.targets(rows)
        if self.form == "pair":
            return arrays[self.arrays[0]], targets
        return {**arrays, "target": targets, "row": torch.from_numpy(rows), "sample_id": source.sample_ids(rows)}

    def describe(self, kind: str, rows: int) -> Table:
        """Return what is read, as a table of one row, for who displays the data set."""
        read = (", ".join(self.arrays), self.split or "all", ", ".join(map(str, self.views)), str(self.dtype), rows)
        return Table(f"{kind} {self.store}", ("arrays", "split", "views", "dtype", "rows"), [read])

    def _values(self, source: CachedSource, name: str, rows: npt.NDArray[np.int64]) -> Tensor:
        views = [source.gather(name, rows, view).to(self.dtype) for view in self.views]
        return views[0] if len(views) == 1 else torch.stack(views, 1)


class SelectedRows:
    """Base of both data sets: what is read, opened anew in each process, and displayed as text and in a notebook."""

    selection: Selection
    _source: CachedSource | None

    @property
    def source(self) -> CachedSource:
        """The rows and arrays in this process."""
        if self._source is None:
            self._source = self.selection.opened()
        return self._source

    def __repr__(self) -> str:
        selection = self.selection
        arrays, split = ", ".join(selection.arrays), selection.split or "all"
        return f"<{type(self).__name__} {selection.store}: {len(self.source)} rows of {arrays}, split {split}>"

    def _repr_html_(self) -> str:
        """Return what is read, for a notebook."""
        return self.selection.describe(type(self).__name__, len(self.source))._repr_html_()


def _selection(
    store: str | Path | FeatureStore, arrays: str | Sequence[str], split: str | None, views: int | Sequence[int], dtype: torch.dtype,
    form: Form, labelled: bool,
) -> Selection:  # fmt: skip
    names = (arrays,) if isinstance(arrays, str) else tuple(arrays)
    drawn = (views,) if isinstance(views, int) else tuple(views)
    place = store if isinstance(store, (str, Path, Url)) else store.path  # a store travels to workers as its path
    return Selection(
        store=placed(place), arrays=names, split=split, views=drawn, dtype=dtype, form=form, labelled=labelled
    )


@dataclass(frozen=True, slots=True, eq=False)
class Gathered(Sequence[Sample]):
    """Samples that were read at once; each is a view of the batch, and `batched` returns the batch itself."""

    batch: Sample
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self.length))]
        if not -self.length <= place < self.length:
            raise IndexError(place)
        return _one(self.batch, place)


def _one(batch: Sample, place: int) -> Sample:
    if isinstance(batch, Mapping):
        return {name: values[place] for name, values in batch.items()}
    return tuple(values[place] for values in batch)


def batched(samples: Gathered) -> Sample:
    """Return what a `FeatureDataset` read at once as one batch: a `collate_fn` that stacks nothing."""
    return samples.batch


class FeatureDataset(SelectedRows, torch.utils.data.Dataset[Sample]):
    """Rows of a store by their place, for a `DataLoader` with any sampler, a distributed one too.

    `DataLoader(dataset, batch_size=256, shuffle=True, collate_fn=batched)` gathers a batch at once.
    """

    def __init__(
        self,
        store: str | Path | FeatureStore,
        arrays: str | Sequence[str] = "embedding",
        *,
        split: str | None = None,
        views: int | Sequence[int] = 0,
        dtype: torch.dtype = torch.float32,
        form: Form = "pair",
        labelled: bool = True,
    ) -> None:
        """Choose what is read.

        Args:
            store: where it is, or the store itself, whose path workers open anew.
            arrays: one name, such as "embedding", or several with form="dict".
            split: rows of this split; None: every row.
            views: one number, (B, ...); or several, (B, V, ...). 0 is the clean view.
            dtype: of the features.
            form: "pair" yields (features, target); "dict" also row numbers and sample ids, by name.
            labelled: leave rows without a target out.

        Raises:
            ConfigError, StoreContentsError: the store does not hold what is asked for.
        """
        self.selection = _selection(store, arrays, split, views, dtype, form, labelled)
        self._source = self.selection.opened()

    def __getstate__(self) -> dict[str, Any]:
        return {"selection": self.selection, "_source": None}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: int) -> Sample:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> Gathered:
        """Return the samples at these places, read at once; `DataLoader` asks for a batch so."""
        rows = self.source.rows[np.asarray(places, dtype=np.int64)].astype(np.int64)
        return Gathered(self.selection.taken(self.source, rows), len(rows))


class FeatureStream(SelectedRows, torch.utils.data.IterableDataset[Sample]):
    """Every row of an epoch once, over all ranks and all workers together, in whole batches or one by one.

    With `batch_size` it yields batches: give `DataLoader(stream, batch_size=None)`. Pieces of ranks differ by one row where
    the rows cannot be dealt evenly; `even` leaves those few rows out of the epoch, so that ranks make equally many steps.
    """

    def __init__(
        self,
        store: str | Path | FeatureStore,
        arrays: str | Sequence[str] = "embedding",
        *,
        split: str | None = None,
        views: int | Sequence[int] = 0,
        dtype: torch.dtype = torch.float32,
        form: Form = "pair",
        labelled: bool = True,
        batch_size: int | None = None,
        order: Order = "blocks",
        seed: int = 0,
        even: bool = False,
        rank: tuple[int, int] | None = None,
    ) -> None:
        """Choose what is read, as in `FeatureDataset`, and how it is walked.

        Args:
            order: "sequential", "shuffled", or "blocks", for stores larger than memory.
            rank: (rank, ranks); None: those of `torch.distributed`, where it runs.
        """
        fits = rank is None or 0 <= rank[0] < rank[1]
        check(
            (batch_size is None or batch_size > 0, f"batch_size must be positive, got {batch_size}"),
            (fits, f"rank must be (rank, ranks) with 0 <= rank < ranks, got {rank}"),
        )
        self.selection = _selection(store, arrays, split, views, dtype, form, labelled)
        self.batch_size, self.order, self.seed, self.even = batch_size, order, seed, even
        self._rank = rank
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # workers that live on see a new epoch
        self._source = self.selection.opened()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None, "_rank": self._rank or _distributed()}

    def set_epoch(self, epoch: int) -> None:
        """Fix the order of the epoch that begins next, also in workers that are alive."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Return how many samples, or batches where no workers share them, this rank yields in an epoch."""
        count = len(self._of_rank(np.arange(len(self.source))))
        return count if self.batch_size is None else -(-count // self.batch_size)

    def _of_rank(self, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
        rank, ranks = self._rank or _distributed() or (0, 1)
        kept = rows[: len(rows) - len(rows) % ranks] if self.even else rows
        piece: npt.NDArray[np.integer[Any]] = np.array_split(kept, ranks)[rank]
        return piece

    def __iter__(self) -> Iterator[Sample]:
        seed = (self.seed << 32) + int(self._epoch)
        rows = self._of_rank(ordered(self.source.rows, self.order, seed))
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            rows = np.array_split(rows, worker.num_workers)[worker.id]
        size = self.batch_size or 256
        with self.source.reading(rows, self.order, clean=self.selection.views == (0,)) as reach:
            for start in range(0, len(rows), size):
                piece = rows[start : start + size].astype(np.int64)
                reach(start + len(piece))
                batch = self.selection.taken(self.source, piece)
                if self.batch_size is None:
                    yield from Gathered(batch, len(piece))
                else:
                    yield batch


def _distributed() -> tuple[int, int] | None:
    """Return (rank, ranks) where torch.distributed runs in this process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
