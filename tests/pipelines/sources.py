"""Rows in memory as a feature source that notes in which order it was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from featurecache.features import FeatureBatch
from featurecache.seeding import generator
from featurecache.sources import Order
from tests.heads.samples import joined


class InMemory:
    """A `FeatureSource` over batches that are there already."""

    def __init__(self, parts: Sequence[FeatureBatch]) -> None:
        self.whole = joined(parts)
        self.constants: dict[str, Tensor] = {}
        self.read: list[list[int]] = []
        """Rows of every pass, in the order they were yielded."""

    def __len__(self) -> int:
        return len(self.whole)

    def batches(
        self, batch_size: int, *, order: Order = "sequential", seed: int = 0, start: int = 0
    ) -> Iterator[FeatureBatch]:
        places = np.arange(len(self)) if order == "sequential" else generator("test", seed).permutation(len(self))
        self.read.append(places.tolist())
        for first in range(start, len(self), batch_size):
            yield self._batch(places[first : first + batch_size])

    def walk(self, batch_size: int) -> list[FeatureBatch]:
        return list(self.batches(batch_size))

    def _batch(self, places: np.ndarray) -> FeatureBatch:
        arrays = {name: values[places] for name, values in self.whole.arrays.items()}
        return FeatureBatch(places, [str(place) for place in places], self.whole.targets[places], arrays)
