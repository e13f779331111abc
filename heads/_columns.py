"""What a logistic regression solves for: one column of weights for each class or label that rows can tell something of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featurecache.errors import ConfigError
from featurecache.features import Task

ABSENT = -1e6
"""Logit of a class without a training row: it is never the answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What is solved for: K columns, of which the C outputs are made."""

    softmax: bool
    """One label among K, or K labels that are each there or not."""
    places: Tensor
    """(K,) class or label of each column; of two classes, the second."""
    spread: Tensor
    """(K, C) float64: what the outputs make of the columns."""
    constant: Tensor
    """(C,) float64: what the outputs add; it decides where no column does."""

    @classmethod
    def of(cls, counts: Tensor, rows: int, task: Task) -> Columns:
        """Return the columns for (C,) rows of each class, or with each label.

        Raises:
            ConfigError: there is nothing to tell apart.
        """
        known = counts > 0 if task == "classification" else (counts > 0) & (counts < rows)
        places, spread = known.nonzero()[:, 0], torch.eye(len(counts), dtype=torch.float64)[known]
        if len(places) < (2 if task == "classification" else 1):
            raise ConfigError([f"logistic needs rows that differ; all {rows} training rows have the same label"])
        if task == "multilabel":  # a label that is always there, or never, is said with the odds of N + 1/2 rows to 1/2
            odds = math.log(2 * rows + 1)
            always = torch.where(counts == rows, odds, -odds).double()
            return cls(False, places, spread, torch.where(known, 0.0, always))
        absent = torch.where(known, 0.0, ABSENT).double()
        if len(places) == 2:  # one column, as in scikit-learn: two with half the weight each would be penalised less
            return cls(False, places[1:], (spread[1:] - spread[:1]) / 2, absent)
        return cls(True, places, spread, absent)

    @property
    def count(self) -> int:
        """K."""
        return len(self.places)

    def labels(self, targets: Tensor) -> Tensor:
        """(B,) classes or (B, C) labels -> (B,) columns for softmax, else (B, K) zeros and ones."""
        if self.softmax:
            return torch.searchsorted(self.places, targets)
        return targets[:, self.places] if targets.ndim == 2 else (targets[:, None] == self.places).to(torch.uint8)
