"""Something near the inverse Hessian of a penalised logistic regression, that costs two products with directions.

The Hessian is one (D + 1)^2 block for each pair of classes. Near it is, for class k alone,
    1 + C r_k G,    G = sum over rows of the mean over classes of p (1 - p) times x x',    r_k the share of class k in it,
so that one eigendecomposition of G serves all classes, and all C about as large.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heads._curvature import Curvature

DIRECTIONS = 1024
"""Of G that are known one by one; the others of wider features count as equal."""
ROWS = 8
"""Rows for each direction, at most: so many, drawn by their weight, tell G well enough."""
ITERATIONS = 2
"""Of the subspace that finds the directions of wide features (Halko et al., 2011)."""


@dataclass(frozen=True, slots=True, eq=False)
class Preconditioner:
    """G = directions diag(values) directions' + rest (1 - directions directions')."""

    values: Tensor
    """(R,) float64."""
    directions: Tensor
    """(D + 1, R) float32."""
    rest: float
    ratios: Tensor
    """(K,) r, float64."""

    @property
    def balance(self) -> float:
        """C at which the losses curve as much as the penalty, on average over the directions."""
        total = float(self.values.sum()) + self.rest * (len(self.directions) - len(self.values))
        return len(self.directions) / max(total * float(self.ratios.mean()), 1e-300)

    def apply(self, strengths: Tensor, slopes: Tensor) -> Tensor:
        """(A,) C, (A, K, D + 1) -> (A, K, D + 1) slopes times the inverse."""
        curved = strengths[:, None] * self.ratios
        others = 1 / (1 + curved * self.rest)
        scales = 1 / (1 + curved[:, :, None] * self.values) - others[:, :, None]
        inner = (slopes.float() @ self.directions) * scales.float()
        return others[:, :, None] * slopes + (inner @ self.directions.T)


def preconditioner(curvature: Curvature, place: int) -> Preconditioner:
    """Return the preconditioner of one problem at its point."""
    weights = curvature.weights(place)
    mean = weights.mean(1)
    chosen, factors = _drawn(mean, ROWS * min(DIRECTIONS, curvature.width))
    rows = curvature.rows(chosen) * factors.sqrt()[:, None]
    values, directions, rest = _spectrum(rows)
    return Preconditioner(values, directions, rest, (weights.sum(0) / mean.sum().clamp_min(1e-30)).double())


def _drawn(weights: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Draw about `most` rows by their weight; return them with factors by which they stand for all."""
    chances = (weights * (most / weights.sum().clamp_min(1e-30))).clamp(max=1)
    drawn = torch.rand(len(weights), generator=torch.Generator().manual_seed(0)) < chances
    chosen = drawn.nonzero()[:, 0]
    return chosen, weights[chosen] / chances[chosen]


def _spectrum(rows: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return the largest eigenvalues (R,) of rows' rows, their directions, and the mean of the other eigenvalues."""
    width = rows.shape[1]
    if width <= DIRECTIONS:
        values, directions = torch.linalg.eigh(rows.T @ rows)
        return values.double().clamp_min(0), directions, 0.0
    basis = torch.randn(width, DIRECTIONS // 2, generator=torch.Generator().manual_seed(0))
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(rows.T @ (rows @ basis))[0]
    seen = rows @ basis
    values, inner = torch.linalg.eigh((seen.T @ seen).double())
    values = values.clamp_min(0)
    others = (float(rows.square().sum()) - float(values.sum())) / (width - len(values))
    return values, basis @ inner.float(), max(0.0, others)
