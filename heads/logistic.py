"""Logistic regression: the optimum of scikit-learn's `LogisticRegression`, for one C or many from one walk a step.

    minimise  C * sum_i loss_i + |W|^2 / 2,  the intercept unpenalised,
where loss is the cross-entropy of softmax(W x + b); of sigmoid(w x + b) for two classes, as there, and for each of several
labels. Standardised features make |W|^2 fair to all of them.

Without `C`, it is chosen among `STRENGTHS` by the loss on validation rows, or by folds of the training rows where there are
none, as `LogisticRegressionCV` does.
Newton's method takes few steps, each a walk over the features, and finds its ways by conjugate gradients on the rows in memory
(`heads/_newton.py`). All values of C lie on one path (`heads/_logistic_path.py`). Products are in float32.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads._inputs import Inputs, alike
from heads._logistic_path import LogisticPath, Solution
from heads._logits import Passes
from heads._strength import compute_losses, split_folds

log = logging.getLogger("featurecache")

CONSUMES = "last"
LEARNING_RATE = 0.0
FITTED = "converged optimum"

LEAST = 1e-9
"""Tolerance that can be asked for."""
TOLERANCE = 1e-5
STRENGTHS = tuple(3.0**k for k in range(-10, 4))
"""Values of C to choose from, 1.7e-5 to 27: neighbours on the path."""
ROUGH_TOLERANCE = 1e-3
"""Of the fits to all folds but one, which are only compared."""


class Logistic(nn.Module):
    """An affine map at the optimum of penalised logistic regression. Solved, never trained by steps."""

    def __init__(self, spec: HeadSpec, C: float | None, tolerance: float) -> None:
        super().__init__()
        self.spec, self.C, self.tolerance = spec, C, tolerance
        self.inputs = Inputs(spec)
        self.map = nn.Linear(self.inputs.width, spec.num_classes).requires_grad_(False)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, D) -> (B, C) logits."""
        logits: Tensor = self.map(self.inputs.joined(arrays))
        return logits

    def solve(
        self, batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
    ) -> dict[str, float]:
        """Set the map to the optimum; returns C and the objective, for the record."""
        return solve_together([self], batches, validation)[0]


def solve_together(
    heads: Sequence[Logistic], batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
) -> list[dict[str, float]]:
    """Solve heads for their own C each; those that read the same arrays share the walks over the batches."""
    found: list[dict[str, float]] = [{} for _ in heads]
    for group in alike([head.inputs for head in heads]):
        first = heads[group[0]]
        fits = fit_logistic(
            first.inputs, batches, first.spec, [heads[place].C for place in group], validation=validation,
            tolerance=min(heads[place].tolerance for place in group),
        )  # fmt: skip
        for place, fitted in zip(group, fits, strict=True):
            if not fitted.gap <= 10 * heads[place].tolerance:
                log.warning("logistic: C %g stopped %.1g of its objective above the optimum", fitted.C, fitted.gap)
            fitted.set(heads[place].map)
            found[place] = fitted.facts
    return found


@dataclass(frozen=True, slots=True, eq=False)
class LogisticFit:
    """A logistic regression at its optimum."""

    weight: Tensor
    """(C, D) float64."""
    bias: Tensor
    """(C,) float64."""
    C: float
    gap: float
    """Estimated distance of the objective from the optimum, relative."""
    facts: dict[str, float]
    """For the record: C, the objective, the number of Hessian products, and the loss that C was chosen by."""

    @torch.no_grad()
    def set(self, affine: nn.Linear) -> None:
        """Copy the optimum into an affine map."""
        affine.weight.copy_(self.weight)
        affine.bias.copy_(self.bias)


def fit_logistic(
    inputs: Inputs,
    batches: Iterable[FeatureBatch],
    spec: HeadSpec,
    strengths: Sequence[float | None],
    *,
    validation: Iterable[FeatureBatch] | None = None,
    tolerance: float = TOLERANCE,
) -> list[LogisticFit]:
    """Fit one logistic regression for every C; None: the one of `STRENGTHS` with the least loss on rows it has not seen.

    Raises:
        ConfigError: the training rows all have the same label.
    """
    passes = Passes(inputs, batches, spec)
    choosing = None in strengths
    values = sorted({*(C for C in strengths if C is not None), *(STRENGTHS if choosing else ())})
    folds = None if validation is not None or not choosing else split_folds(batches, spec)
    alone = choosing and validation is None and folds is None  # a class of one row: nothing can be left out
    values = sorted({*values, 1 / inputs.width}) if alone else values
    solved = LogisticPath(passes, tolerance).solve(values)
    chosen, loss = 1 / inputs.width, math.nan
    if choosing and not alone:
        candidates = [solved[C] for C in STRENGTHS]
        losses = _validate(candidates, passes, validation) if folds is None else _cross_validate(inputs, spec, folds)
        place = int(losses.argmin())  # of equal losses the smallest C
        chosen, loss = STRENGTHS[place], float(losses[place])
    return [_build_fit(solved[chosen if C is None else C], passes, loss if C is None else math.nan) for C in strengths]


def _build_fit(solution: Solution, passes: Passes, loss: float) -> LogisticFit:
    weight, bias = solution.to_affine(passes)
    facts = {"C": solution.strength, "objective": solution.objective, "products": float(solution.products)}
    if math.isfinite(loss):
        facts["selection_loss"] = loss
    return LogisticFit(weight, bias, solution.strength, solution.left, facts)


def _validate(candidates: Sequence[Solution], passes: Passes, rows: Iterable[FeatureBatch] | None) -> Tensor:
    """Return the (S,) mean losses of the candidates on some rows."""
    assert rows is not None
    maps = [solution.to_affine(passes) for solution in candidates]
    total, count = compute_losses(maps, passes.inputs, rows, passes.spec)
    return total / max(1, count)


def _cross_validate(
    inputs: Inputs, spec: HeadSpec, folds: Sequence[tuple[list[FeatureBatch], list[FeatureBatch]]]
) -> Tensor:
    """Return the (S,) mean losses of every C, each row measured by the fit to the other folds."""
    total, count = torch.zeros(len(STRENGTHS), dtype=torch.float64), 0
    for learnt, left_out in folds:
        passes = Passes(inputs, learnt, spec)
        solved = LogisticPath(passes, ROUGH_TOLERANCE).solve(STRENGTHS)
        losses, rows = compute_losses([solved[C].to_affine(passes) for C in STRENGTHS], inputs, left_out, spec)
        total, count = total + losses, count + rows
    return total / max(1, count)


def build(spec: HeadSpec, *, C: float | None = None, tolerance: float = TOLERANCE) -> Logistic:
    """Return a logistic regression; `C` weighs the losses against the squared weights, as in scikit-learn.

    Args:
        spec: what it reads and says.
        C: the inverse of the penalty; None: chosen by the loss on validation rows, or by folds of the training rows.
        tolerance: relative distance of the objective from the optimum; scikit-learn's own default ends less near.

    Raises:
        ConfigError: lists every option out of range, and a regression, which has no classes.
    """
    check(
        (C is None or 0 < C < math.inf, f"C must be positive, got {C}"),
        (LEAST <= tolerance < 1, f"tolerance must lie in [{LEAST:g}, 1), got {tolerance}: products are in float32"),
        (spec.task != "regression", "logistic cannot do regression: it tells classes apart. Give --head ridge"),
    )
    return Logistic(spec, C, tolerance)
