"""What a score is computed from: labelled rows of one array, and how they spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

import logme
from featurecache.features import ArraySpec, Task, as_numbers
from featurecache.stores import FeatureStore

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

PIECE = 4096
"""Rows held at once."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Spread:
    """First and second moments of rows; each of the K classes is one that occurs. Other tasks are one class."""

    mean: Floats
    """(D,)."""
    covariance: Floats
    """(D, D), divided by N."""
    class_means: Floats
    """(K, D)."""
    shares: Floats
    """(K,) rows of each class, divided by N."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """N labelled rows of one array, read in pieces as often as a score needs; memory does not grow with N."""

    read: Callable[[Places], npt.NDArray[Any]]
    """(B,) places among the N rows -> their (B, D) values, of any real dtype."""
    targets: npt.NDArray[Any]
    """(N,) classes, or (N, K) columns of the other tasks."""
    width: int
    """D."""
    num_targets: int
    """K: classes of the data, with or without rows, or columns."""
    task: Task = "classification"

    @classmethod
    def of(cls, values: npt.NDArray[Any], targets: npt.NDArray[Any], task: Task = "classification") -> Rows:
        """Return the rows of values (N, D) in memory."""
        columns = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
        return cls(
            read=lambda places: values[places], targets=targets, width=values.shape[1], num_targets=columns, task=task
        )

    @classmethod
    def stored(cls, store: FeatureStore, spec: ArraySpec, rows: Places) -> Rows:
        """Return some rows of one vector array of a store, in the order given."""
        return cls(
            read=lambda places: as_numbers(store.read(spec.name, rows[places]), spec.dtype),
            targets=np.asarray(store.table().target)[rows],
            width=spec.tail[0],
            num_targets=max(1, len(store.header.class_names)),
            task=store.header.task,
        )

    def __len__(self) -> int:
        return len(self.targets)

    def pieces(self, places: Places | None = None) -> Iterator[tuple[Floats, npt.NDArray[Any]]]:
        """Yield the rows at `places` (None: all) as (B, D) values and their targets, in order."""
        wanted = np.arange(len(self)) if places is None else places
        for start in range(0, len(wanted), PIECE):
            piece = wanted[start : start + PIECE]
            yield self.read(piece).astype(np.float64), self.targets[piece]

    @cached_property
    def spread(self) -> Spread:
        """The moments, from one pass that all scores of these rows share."""
        classes = self.task == "classification"
        moments, origin = logme.Moments(self.width, self.num_targets if classes else 1), np.zeros(self.width)
        for values, targets in self.pieces():
            if not moments.n:
                origin = values.mean(axis=0)  # else a large mean would eat the digits of the covariance
            moments.update(values - origin, targets if classes else np.zeros(len(values), np.int64))
        counts = moments.counts[moments.counts > 0]
        sums = moments.sums[moments.counts > 0]
        mean = sums.sum(axis=0) / len(self)
        return Spread(
            mean=origin + mean,
            covariance=moments.gram / len(self) - np.outer(mean, mean),
            class_means=origin + sums / counts[:, None],
            shares=counts / len(self),
        )
