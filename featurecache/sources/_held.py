"""Clean pictures that are decoded once and held in memory, for trainings that see the same ones again and again."""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MOST = 2**30
"""Bytes that are held at most, if a quarter of the free memory is not less."""


class HeldImages:
    """Room for the pictures of all rows of a data set, as one model sees them; none where they would take too much."""

    def __init__(self, rows: int, shape: tuple[int, ...], most: int = MOST) -> None:
        """Hold nothing yet."""
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 4
        fits = rows * math.prod(shape) * 4 <= min(most, free)
        self._there = np.zeros(rows if fits else 0, dtype=bool)
        self._values = torch.empty(rows if fits else 0, *shape)

    def has(self, rows: npt.NDArray[np.int64]) -> bool:
        """Return whether the pictures of these rows are all held."""
        return len(self._there) > 0 and bool(self._there[rows].all())

    def keep(self, rows: npt.NDArray[np.int64], images: Tensor) -> None:
        """Hold (B, 3, H, W) pictures, if there is room for those of the data set."""
        if len(self._there):
            self._values[torch.from_numpy(rows)] = images
            self._there[rows] = True

    def take(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return (B, 3, H, W) pictures that are held."""
        return self._values.index_select(0, torch.from_numpy(rows))
