"""Rows of a store that are copied to a GPU once, so that no batch of training crosses the bus again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.casting import as_tensor
from featurecache.features import FeatureBatch
from featurecache.seeding import generator
from featurecache.sources import Order
from featurecache.sources.cached import BLOCK, CachedSource, Walk, ordered

log = logging.getLogger("featurecache")

SHARE = 0.7
"""Of the free memory of the device: the rest is for the heads, their gradients and what a step needs."""


class StagedSource:
    """The rows and arrays of a `CachedSource`, in the store's dtype on a device; batches equal its own. See `FeatureSource`."""

    def __init__(self, source: CachedSource, device: torch.device) -> None:
        """Copy the rows, a few thousand at a time."""
        self.source, self.device = source, device
        self.constants: Mapping[str, Tensor] = source.constants
        self._values = {
            (name, view): _copied(source, name, view, device) for name in source.arrays for view in range(source.views)
        }
        self._targets = source.targets(source.rows).to(device)

    def __len__(self) -> int:
        return len(self.source)

    def batches(
        self, batch_size: int, *, order: Order = "sequential", seed: int = 0, start: int = 0
    ) -> Iterator[FeatureBatch]:
        """Yield every row once, in the order and with the views of the source that was copied."""
        source = self.source
        rows = ordered(source.rows, order, seed)
        draws = source.views > 1 and order != "sequential"
        views = generator("views", seed).integers(0, source.views, len(rows)) if draws else None
        places = torch.from_numpy(np.searchsorted(source.rows, rows)).to(self.device)
        for first in range(start, len(rows), batch_size):
            piece = slice(first, first + batch_size)
            arrays = {
                name: self._taken(name, places[piece], None if views is None else views[piece])
                for name in source.arrays
            }
            targets = self._targets.index_select(0, places[piece])
            taken = rows[piece].astype(np.int64)
            yield FeatureBatch(taken, source.sample_ids(taken), targets, arrays)

    def _taken(self, name: str, places: Tensor, views: npt.NDArray[np.int64] | None) -> Tensor:
        """Return (B, ...) values on the device, float32, each row of its own view; None: the clean view of all."""
        if views is None:
            return self._values[name, 0].index_select(0, places).float()
        found = torch.empty(len(places), *self._values[name, 0].shape[1:], device=self.device)
        for view in np.unique(views):
            which = torch.from_numpy(np.flatnonzero(views == view)).to(self.device)
            found[which] = self._values[name, int(view)].index_select(0, places[which]).float()
        return found

    def walk(self, batch_size: int) -> Walk:
        """Return sequential batches that can be walked more than once."""
        return Walk(self, batch_size)


def _copied(source: CachedSource, name: str, view: int, device: torch.device) -> Tensor:
    """Return (N, ...) stored values of the source's rows on the device."""
    spec = source.store.header.array(name)
    whole: Tensor | None = None
    for start in range(0, len(source), BLOCK):
        rows = source.rows[start : start + BLOCK].astype(np.int64)
        values = as_tensor(source.store.read(name, rows, view), spec.dtype)
        if whole is None:
            whole = torch.empty(len(source), *spec.tail, dtype=values.dtype, device=device)
        whole[start : start + BLOCK].copy_(values)
    return torch.empty(0, *spec.tail, device=device) if whole is None else whole


def staged_bytes(source: CachedSource) -> int:
    """Return the bytes that the rows of a source take on a device."""
    row = sum(source.store.header.array(name).row_bytes for name in source.arrays) * source.views
    return row * len(source) + source.targets(source.rows).nbytes


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a CUDA device that nothing takes."""
    return int(torch.cuda.mem_get_info(device)[0])


def staged(
    sources: Mapping[str, CachedSource], device: str, free: Callable[[torch.device], int] = free_bytes
) -> Mapping[str, CachedSource | StagedSource]:
    """Return the sources with their rows on the device, all of them or none, and say which; on anything but a GPU, as they are.

    They stay where they are when together they take more than most of what is free there.
    """
    place = torch.device(device)
    if place.type != "cuda":
        return sources
    needed, room = sum(map(staged_bytes, sources.values())), free(place)
    if needed > SHARE * room:
        log.info(
            "the features take %.1f GB and %s has %.1f GB free, so every batch is copied there when its turn comes",
            needed / 1e9, device, room / 1e9,
        )  # fmt: skip
        return sources
    log.info("the features (%.1f GB) are copied to %s once", needed / 1e9, device)
    return {split: StagedSource(source, place) if len(source) else source for split, source in sources.items()}
