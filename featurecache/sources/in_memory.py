"""Rows in memory as a feature source: tensors that a caller has, trained on as those of a store are; or targets alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.features import FeatureBatch
from featurecache.sources import Order
from featurecache.sources.cached import Ids, Walk, ordered


class InMemory:
    """Some rows of arrays that share their first axis; a `FeatureSource`."""

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        targets: Tensor,
        rows: npt.NDArray[np.int64] | None = None,
        ids: npt.NDArray[Any] | None = None,
    ) -> None:
        """Take (N, ...) float32 arrays, (N,) targets and (N,) sample ids (None: their numbers); of them `rows` (None: all)."""
        self.arrays, self.targets = arrays, targets
        self.rows = np.arange(len(targets)) if rows is None else rows
        self.ids = np.arange(len(targets)).astype(str) if ids is None else ids
        self.constants: Mapping[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, batch_size: int, *, order: Order = "sequential", seed: int = 0, start: int = 0
    ) -> Iterator[FeatureBatch]:
        """Yield every row once, but the first `start` of them; see `FeatureSource`."""
        rows = ordered(self.rows, order, seed)
        for begin in range(start, len(rows), batch_size):
            piece = rows[begin : begin + batch_size]
            places = torch.from_numpy(piece)
            arrays = {name: values.index_select(0, places) for name, values in self.arrays.items()}
            yield FeatureBatch(piece, Ids(self.ids, piece), self.targets.index_select(0, places), arrays)

    def walk(self, batch_size: int) -> Walk:
        """Return sequential batches that can be walked more than once."""
        return Walk(self, batch_size)

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return array -> (mean, standard deviation) over the rows, float32; 1 for a feature that is constant."""
        places, found = torch.from_numpy(self.rows), {}
        for name, values in self.arrays.items():
            picked = values.index_select(0, places).double()
            mean, scale = picked.mean(0), picked.std(0, correction=0)
            constant = scale <= 1e-7 * mean.abs().clamp_min(1e-30)
            found[name] = (mean.float(), torch.where(constant, torch.ones_like(scale), scale).float())
        return found
