"""The metric of class means and neighbours: features whitened by the covariance that rows have within their classes.

    A = (1 - s) S + s v I,   S = sum_i r_i r_i' / (N - C),   r_i = x_i - m_(y_i),   v = tr S / D
Directions in which rows of one class differ anyway count less. The shrinkage s is the one under which rows, each left out of
the mean of its class and of S, are most likely (regularised discriminant analysis, Friedman, 1989); s = 1 is the plain metric.
Leaving row i of a class of n out of S takes (1 - s) n / (n - 1) / (N - C) r_i r_i' from A, so that A^(-1) follows by the formula
of Sherman and Morrison, and the row is n / (n - 1) r_i away from the mean of the others of its class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.features import FeatureBatch
from heads._inputs import Inputs

SHRINKAGES = (1.0, 0.97, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.05, 0.02)
"""Tried, the plain metric first: of equals the plainer."""
TEMPERATURES = tuple(10.0 ** (k / 5) for k in range(-10, 6))
"""Tried factors on squared distances, so that likelihoods of different s compare."""
WIDEST = 2048
"""Features beyond which the plain metric is kept: S has as many numbers as their square."""


class WithinClassMetric(nn.Module):
    """(B, D) features -> (B, D) whitened ones, whose inner products are the metric; the identity until it is solved."""

    matrix: Tensor
    """(D, D) A^(-1/2), or (0, D) for the plain metric."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.zeros(0, width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return features @ self.matrix if len(self.matrix) else features

    def solve(self, inputs: Inputs, batches: Iterable[FeatureBatch], classes: int) -> dict[str, float]:
        """Choose s and set the matrix, from batches that are walked twice; returns s, for the record."""
        if inputs.width > WIDEST:
            return {"shrinkage": 1.0}
        spread = _Spread.measure(inputs, batches, classes)
        if spread is None:
            return {"shrinkage": 1.0}
        losses = torch.zeros(len(SHRINKAGES), len(TEMPERATURES), dtype=torch.float64)
        for batch in batches:
            features = inputs.joined(batch.arrays).double()
            for place, shrinkage in enumerate(SHRINKAGES):
                losses[place] += spread.sum_losses(features, batch.targets, shrinkage)
        shrinkage = SHRINKAGES[int(losses.amin(1).argmin())]
        if shrinkage < 1:
            self.matrix = spread.compute_whitening(shrinkage).to(self.matrix.dtype)
        return {"shrinkage": shrinkage}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for the matrix that was saved, which is there or not."""
        if prefix + "matrix" in state_dict:
            self.matrix = self.matrix.new_empty(len(state_dict[prefix + "matrix"]), self.matrix.shape[1])
        else:  # a head that was saved before there was a metric
            state_dict[prefix + "matrix"] = self.matrix  # type: ignore[index]
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True, slots=True, eq=False)
class _Spread:
    """Class means and the covariance within classes, in its own directions; float64."""

    counts: Tensor
    """(C,) rows of each class."""
    means: Tensor
    """(C, D) along the directions; zeros for a class without rows."""
    variances: Tensor
    """(D,) of S along its directions."""
    directions: Tensor
    """(D, D)."""

    @classmethod
    def measure(cls, inputs: Inputs, batches: Iterable[FeatureBatch], classes: int) -> _Spread | None:
        """Return them; None where no row can be left out of its class, or rows of a class do not differ."""
        counts = torch.zeros(classes, dtype=torch.float64)
        sums = torch.zeros(classes, inputs.width, dtype=torch.float64)
        gram = torch.zeros(inputs.width, inputs.width, dtype=torch.float64)
        for batch in batches:
            features = inputs.joined(batch.arrays).double()
            counts += torch.bincount(batch.targets, minlength=classes)
            sums.index_add_(0, batch.targets, features)
            gram.addmm_(features.T, features)
        degrees = counts.sum() - (counts > 0).sum()
        if degrees < 1:
            return None
        means = sums / counts.clamp_min(1)[:, None]
        within = (gram - (means * counts[:, None]).T @ means) / degrees
        variances, directions = torch.linalg.eigh(within)
        if not variances[-1] > 1e-12 * gram.diagonal().mean() / counts.sum():
            return None
        return cls(counts, means @ directions, variances.clamp_min(0), directions)

    def _inverse(self, shrinkage: float) -> Tensor:
        return 1 / ((1 - shrinkage) * self.variances + shrinkage * self.variances.mean())

    def compute_whitening(self, shrinkage: float) -> Tensor:
        """Return the (D, D) symmetric root of the inverse of A, times sqrt(v): lengths stay as they are on the whole."""
        scale = (self._inverse(shrinkage) * self.variances.mean()).sqrt()
        return (self.directions * scale) @ self.directions.T

    def sum_losses(self, features: Tensor, targets: Tensor, shrinkage: float) -> Tensor:
        """Return (T,) summed cross-entropies of every temperature, each row left out of its class and of S."""
        inverse, own = self._inverse(shrinkage), self.counts[targets]
        rows = features @ self.directions
        residuals = rows - self.means[targets]
        taken = (1 - shrinkage) * own / (own - 1).clamp_min(1) / (self.counts.sum() - (self.counts > 0).sum())
        lengths = residuals.square() @ inverse
        factor = taken / (1 - taken * lengths).clamp_min(1e-12)
        to_means = (
            (rows.square() @ inverse)[:, None] - 2 * (rows * inverse) @ self.means.T + self.means.square() @ inverse
        )
        crossed = ((residuals * inverse) * rows).sum(1)[:, None] - (residuals * inverse) @ self.means.T
        distances = to_means + factor[:, None] * crossed.square()
        away = (own / (own - 1).clamp_min(1)).square()
        distances[torch.arange(len(targets)), targets] = away * (lengths + factor * lengths.square())
        known = self.counts > 0
        distances, places = distances[:, known][own > 1], (torch.cumsum(known, 0) - 1)[targets][own > 1]
        distances = distances * self.variances.mean() / math.sqrt(len(self.variances))
        losses = [F.cross_entropy(-t * distances / 2, places, reduction="sum") for t in TEMPERATURES]
        return torch.stack(losses)
