"""Logistic regression: the optimum of scikit-learn's `LogisticRegression`, for one C or many from one walk a step.

    minimise  C * sum_i loss_i + |W|^2 / 2,  the intercept unpenalised,
where loss is the cross-entropy of softmax(W x + b); of sigmoid(w x + b) for two classes, as there, and for each of several
labels. Standardised features make |W|^2 fair to all of them.

Sums that would make the features needless do not exist here, so what costs is walking over them. All values of C go down
together (`heads/_descent.py`): each step is one product of the features with all M * C columns and one back. Steps are few,
since they are taken in coordinates in which the Hessian at W = 0 is the identity: with the Gram matrix G = Q diag(g) Q' of
the centred features and v the variance of a label, these are W = Q diag(1 / sqrt(1 + C v g)) U. Products are in float32; the
end is reached, and judged, in float64.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads._descent import Descent
from heads._inputs import Inputs, alike
from heads._logits import Passes

log = logging.getLogger("featurecache")

CONSUMES = "last"
LEARNING_RATE = 0.0

MEMORY = 10
"""Steps that L-BFGS remembers."""
STATE_BYTES = 1 << 30
"""Of steps remembered; where all values of C would need more, they are solved in several groups."""
ROUGH, TOLERANCE = 1e-7, 1e-9
"""Relative distance from the optimum, estimated, at which a C is left in float32, and then in float64: less is noise there."""
EVALUATIONS = 1000


class Logistic(nn.Module):
    """An affine map at the optimum of penalised logistic regression. Solved, never trained."""

    def __init__(self, spec: HeadSpec, C: float) -> None:
        super().__init__()
        self.spec, self.C = spec, C
        self.inputs = Inputs(spec)
        self.map = nn.Linear(self.inputs.width, spec.num_classes).requires_grad_(False)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, D) -> (B, C) logits."""
        logits: Tensor = self.map(self.inputs.joined(arrays))
        return logits

    def solve(self, batches: Iterable[FeatureBatch]) -> dict[str, float]:
        """Set the map to the optimum; returns its objective, for the record."""
        return solve_together([self], batches)[0]


def solve_together(heads: Sequence[Logistic], batches: Iterable[FeatureBatch]) -> list[dict[str, float]]:
    """Solve heads for their own C each; those that read the same arrays share every walk over the batches."""
    found: list[dict[str, float]] = [{} for _ in heads]
    for group in alike([head.inputs for head in heads]):
        passes = Passes(heads[group[0]].inputs, batches, heads[group[0]].spec)
        size = 8 * (2 * MEMORY + 8) * passes.columns.count * (passes.width + 1)
        most = max(1, STATE_BYTES // size)
        for start in range(0, len(group), most):
            places = group[start : start + most]
            facts = _solve([heads[place] for place in places], passes)
            for place, fact in zip(places, facts, strict=True):
                found[place] = fact
    return found


@torch.no_grad()
def _solve(heads: Sequence[Logistic], passes: Passes) -> list[dict[str, float]]:
    strengths = torch.tensor([head.C for head in heads], dtype=torch.float64)
    coordinates = _Coordinates(passes, strengths)
    descent = Descent(torch.zeros(len(heads), (passes.width + 1) * passes.columns.count, dtype=torch.float64), MEMORY)
    for exact in (False, True):

        def evaluate(which: Tensor, points: Tensor, exact: bool = exact) -> tuple[Tensor, Tensor]:
            weight, bias = coordinates.values(which, points)
            losses, by_weight, by_bias = passes.losses(weight, bias, exact=exact)
            strength = strengths[which]
            values = strength * losses + weight.square().sum((1, 2)) / 2
            slopes = coordinates.slopes(
                which, strength[:, None, None] * by_weight + weight, strength[:, None] * by_bias
            )
            return values, slopes

        descent.run(evaluate, TOLERANCE if exact else ROUGH, EVALUATIONS, noise=1e-14 if exact else 1e-7)
    weights, biases = coordinates.values(torch.arange(len(heads)), descent.points)
    return [_set(head, passes, weights[number], biases[number], descent, number) for number, head in enumerate(heads)]


def _set(
    head: Logistic, passes: Passes, weight: Tensor, bias: Tensor, descent: Descent, number: int
) -> dict[str, float]:
    left = float(descent.left[number] / descent.values[number].abs().clamp_min(1e-300))
    if left > 1000 * TOLERANCE:
        log.warning("logistic: C %g stopped %.1g of its objective above the optimum", head.C, left)
    columns = passes.columns
    head.map.weight.copy_((weight @ columns.spread).T)
    head.map.bias.copy_((bias - passes.mean @ weight) @ columns.spread + columns.constant)
    return {
        "C": head.C,
        "objective": float(descent.values[number]),
        "evaluations": float(descent.evaluations[number]),
    }


class _Coordinates:
    """The points of the descent <-> weights (A, D, K) and intercepts (A, K) of the centred features."""

    def __init__(self, passes: Passes, strengths: Tensor) -> None:
        curvature = strengths * passes.columns.variance
        self.directions = passes.directions
        self.rest = (1 + curvature * passes.rest).rsqrt()
        self.scales = (1 + curvature[:, None] * passes.eigenvalues).rsqrt() - self.rest[:, None]
        self.shift = (curvature * passes.rows).rsqrt()
        self.shape = (passes.width + 1, passes.columns.count)

    def values(self, which: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        points = points.reshape(len(points), *self.shape)
        return self._scaled(which, points[:, :-1]), self.shift[which, None] * points[:, -1]

    def slopes(self, which: Tensor, by_weight: Tensor, by_bias: Tensor) -> Tensor:
        by_point = self._scaled(which, by_weight)
        return torch.cat([by_point, (self.shift[which, None] * by_bias)[:, None]], dim=1).flatten(1)

    def _scaled(self, which: Tensor, values: Tensor) -> Tensor:
        """Multiply (A, D, K) by the symmetric Q diag(s) Q', s known on R directions and equal on all others."""
        inner = self.scales[which][:, :, None] * (self.directions.T @ values)
        return self.rest[which, None, None] * values + self.directions @ inner


def build(spec: HeadSpec, *, C: float = 1.0) -> Logistic:
    """Return a logistic regression; `C` weighs the losses against the squared weights, as in scikit-learn.

    Raises:
        ConfigError: lists every option out of range, and a regression, which has no classes.
    """
    check(
        (0 < C < math.inf, f"C must be positive, got {C}"),
        (spec.task != "regression", "logistic cannot do regression: it tells classes apart. Give --head ridge"),
    )
    return Logistic(spec, C)
