"""Ridge probe: regression onto the classes in closed form, lambda by exact leave-one-out, all lambda from one factorisation.

Rows are centred, so the intercept is not penalised. With the centred Gram matrix G = Q diag(w) Q', the prediction of
row i under lambda is x_i Q diag(1 / (w + lambda)) Q' X'Y, and its leave-one-out residual is the residual divided by
1 - h_i with h_i = 1/N + sum_j (x_i Q)_j^2 / (w_j + lambda) (Allen's PRESS). Everything is summed in float64.
Where a class has a single row, nothing is known of it without that row: lambda is then chosen by the loss on validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.errors import ConfigError
from featurecache.features import FeatureBatch, Task
from featurecache.repetition import warn_repeatedly
from heads import HeadSpec
from heads._inputs import Inputs, alike

CONSUMES = "last"
LEARNING_RATE = 0.0
FITTED = "closed form"

LAMBDAS = tuple(10.0 ** (k / 4) for k in range(-16, 13))
"""Tried values of lambda per row: the penalty is lambda * N, since the Gram matrix of standardised features grows with N."""

TEMPERATURES = tuple(10.0 ** (k / 20) for k in range(-20, 61))
"""Tried factors between regression predictions and logits."""


@dataclass(frozen=True, slots=True, eq=False)
class RidgeFit:
    """A solved ridge regression."""

    weight: Tensor
    """(D, C) float64."""
    bias: Tensor
    """(C,) float64."""
    penalty: float
    """The chosen lambda per row."""
    penalties: tuple[float, ...]
    """Every lambda per row that was tried."""
    errors: tuple[float, ...]
    """Leave-one-out mean squared error of each."""
    temperature: float
    """Factor that makes logits of the predictions, by maximum likelihood of the leave-one-out predictions; 1 for regression."""

    def chosen(self) -> dict[str, float]:
        """Return what was chosen, for the record."""
        error = self.errors[self.penalties.index(self.penalty)]
        return {"lambda_per_row": self.penalty, "leave_one_out_error": error}


def one_hot(targets: Tensor, num_classes: int, task: Task) -> Tensor:
    """Return the (B, C) float64 columns that the regression is to predict."""
    return F.one_hot(targets, num_classes).double() if task == "classification" else targets.double()


def solve_ridge(
    inputs: Inputs,
    batches: Iterable[FeatureBatch],
    spec: HeadSpec,
    penalties: tuple[float, ...] = LAMBDAS,
    validation: Iterable[FeatureBatch] | None = None,
) -> RidgeFit:
    """Fit a ridge regression from a stream that is walked three times; lambda has the least leave-one-out error.

    Memory is D^2, and min(N, D) * D where there are fewer rows than features; it does not grow with N.
    """
    return solve_ridges(inputs, batches, spec, [penalties], validation)[0]


def solve_ridges(
    inputs: Inputs,
    batches: Iterable[FeatureBatch],
    spec: HeadSpec,
    grids: Sequence[tuple[float, ...]],
    validation: Iterable[FeatureBatch] | None = None,
) -> list[RidgeFit]:
    """Fit one ridge regression for each grid of penalties, all from one factorisation and the same three walks."""
    problem = _Problem.of(inputs, batches, spec)
    every = tuple(sorted({penalty for grid in grids for penalty in grid}))
    errors = dict(zip(every, problem.errors(batches, every), strict=True))
    measured = problem.validate(validation, every) if validation is not None and problem.has_single_rows else None
    choices = errors if measured is None else {penalty: loss for penalty, (loss, _) in measured.items()}
    chosen = [min(grid, key=choices.__getitem__) for grid in grids]
    for grid, best in dict(zip(grids, chosen, strict=True)).items() if measured is None else ():
        if len(grid) > 2 and best in (min(grid), max(grid)):
            warn_repeatedly(
                f"ridge over {_named(inputs)}", f"the best lambda {best:.3g}", "lies at the edge of the grid"
            )
    distinct = tuple(dict.fromkeys(chosen))
    if measured is not None:
        temperatures = [measured[penalty][1] for penalty in distinct]
    else:
        temperatures = [1.0] * len(distinct) if spec.task == "regression" else problem.temperatures(batches, distinct)
    fits = {}
    for penalty, temperature in zip(distinct, temperatures, strict=True):
        weight = problem.weight(penalty)
        fits[penalty] = (weight, problem.target_mean - problem.mean @ weight, temperature)
    return [
        RidgeFit(
            weight=fits[best][0], bias=fits[best][1], temperature=fits[best][2], penalty=best,
            penalties=grid, errors=tuple(errors[penalty] for penalty in grid),
        )
        for grid, best in zip(grids, chosen, strict=True)
    ]  # fmt: skip


def _named(inputs: Inputs) -> str:
    return inputs.names[0] if len(inputs.names) == 1 else f"{inputs.names[0]} ... {inputs.names[-1]}"


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """The factorised problem: directions (D, R) and eigenvalues (R,) of the centred Gram matrix, R = min(N, D)."""

    inputs: Inputs
    spec: HeadSpec
    count: int
    mean: Tensor
    target_mean: Tensor
    directions: Tensor
    eigenvalues: Tensor
    right: Tensor
    """(R, C): directions' X'Y."""

    @classmethod
    def of(cls, inputs: Inputs, batches: Iterable[FeatureBatch], spec: HeadSpec) -> _Problem:
        width = inputs.width
        count, total, target_total = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        gram = cross = None
        kept: list[tuple[Tensor, Tensor]] | None = []
        for batch in batches:
            x, y = _columns(inputs, batch, spec)
            count += len(x)
            total, target_total = total + x.sum(0), target_total + y.sum(0)
            if kept is not None:
                kept.append((x, y))
                if count <= width:
                    continue
                x, y = (torch.cat(parts) for parts in zip(*kept, strict=True))
                kept = None
            gram = x.T @ x if gram is None else gram.addmm_(x.T, x)
            cross = x.T @ y if cross is None else cross.addmm_(x.T, y)
        if count < 2:
            raise ConfigError([f"ridge needs at least two training rows, got {count}"])
        mean, target_mean = total / count, target_total / count
        if kept is not None:  # fewer rows than features: the same problem through the N x N kernel
            x, y = (torch.cat(parts) for parts in zip(*kept, strict=True))
            x = x - mean
            values, rows = torch.linalg.eigh(x @ x.T)
            keep = values > values[-1] * count * torch.finfo(torch.float64).eps
            values, rows = values[keep], rows[:, keep]
            directions = (x.T @ rows) / values.sqrt()
            right = values.sqrt()[:, None] * (rows.T @ (y - target_mean))
        else:
            assert gram is not None and cross is not None
            values, directions = torch.linalg.eigh(gram.addr_(mean, mean, alpha=-count))
            values = values.clamp_min(0)
            right = directions.T @ (cross - count * torch.outer(mean, target_mean))
        return cls(inputs, spec, count, mean, target_mean, directions, values, right)

    def weight(self, penalty: float) -> Tensor:
        """Return the (D, C) solution for one lambda per row."""
        return self.directions @ (self._inverse(penalty)[:, None] * self.right)

    def _inverse(self, penalty: float) -> Tensor:
        return 1 / (self.eigenvalues + penalty * self.count)

    def _left_out(self, projected: Tensor, targets: Tensor, penalty: float) -> Tensor:
        """Return (B, C) predictions of each row by the fit without that row, from its (B, R) projection."""
        inverse = self._inverse(penalty)
        leverage = 1 / self.count + projected.square() @ inverse
        fitted = self.target_mean + projected @ (inverse[:, None] * self.right)
        return targets - (targets - fitted) / (1 - leverage).clamp_min(1e-12)[:, None]

    @property
    def has_single_rows(self) -> bool:
        """Whether some class has one row only."""
        counts = self.target_mean * self.count
        return self.spec.task == "classification" and bool(((counts > 0.5) & (counts < 1.5)).any())

    def validate(self, rows: Iterable[FeatureBatch], penalties: tuple[float, ...]) -> dict[float, tuple[float, float]]:
        """Return lambda -> (least summed cross-entropy on some rows, the temperature under which it is that)."""
        losses = torch.zeros(len(penalties), len(TEMPERATURES), dtype=torch.float64)
        for projected, targets in self._projections(rows):
            for i, penalty in enumerate(penalties):
                predictions = self.target_mean + projected @ (self._inverse(penalty)[:, None] * self.right)
                losses[i] += torch.stack([_loss(t * predictions, targets, t, self.spec.task) for t in TEMPERATURES])
        best = losses.argmin(1).tolist()
        return {p: (float(losses[i, best[i]]), TEMPERATURES[best[i]]) for i, p in enumerate(penalties)}

    def _projections(self, batches: Iterable[FeatureBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            x, y = _columns(self.inputs, batch, self.spec)
            yield (x - self.mean) @ self.directions, y

    def errors(self, batches: Iterable[FeatureBatch], penalties: tuple[float, ...]) -> tuple[float, ...]:
        """Return the leave-one-out mean squared error of every lambda."""
        totals = [0.0] * len(penalties)
        for projected, targets in self._projections(batches):
            for i, penalty in enumerate(penalties):
                totals[i] += float((self._left_out(projected, targets, penalty) - targets).square().sum())
        return tuple(total / (self.count * self.right.shape[1]) for total in totals)

    def temperatures(self, batches: Iterable[FeatureBatch], penalties: tuple[float, ...]) -> list[float]:
        """Return for each lambda the factor under which the leave-one-out predictions, read as logits, are most likely."""
        losses = torch.zeros(len(penalties), len(TEMPERATURES), dtype=torch.float64)
        for projected, targets in self._projections(batches):
            for i, penalty in enumerate(penalties):
                predictions = self._left_out(projected, targets, penalty)
                losses[i] += torch.stack([_loss(t * predictions, targets, t, self.spec.task) for t in TEMPERATURES])
        return [TEMPERATURES[int(one.argmin())] for one in losses]


def _columns(inputs: Inputs, batch: FeatureBatch, spec: HeadSpec) -> tuple[Tensor, Tensor]:
    return inputs.joined(batch.arrays).double(), one_hot(batch.targets, spec.num_classes, spec.task)


def _loss(logits: Tensor, targets: Tensor, temperature: float, task: Task) -> Tensor:
    if task == "classification":
        return -(F.log_softmax(logits, -1) * targets).sum()
    return F.binary_cross_entropy_with_logits(logits - temperature / 2, targets, reduction="sum")


class Ridge(nn.Module):
    """A ridge regression read as a classifier: logits are its predictions times a temperature. Solved, never trained."""

    def __init__(self, spec: HeadSpec, penalties: tuple[float, ...]) -> None:
        super().__init__()
        self.spec, self.penalties = spec, penalties
        self.inputs = Inputs(spec)
        self.map = nn.Linear(self.inputs.width, spec.num_classes).requires_grad_(False)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, D) -> (B, C) logits."""
        logits: Tensor = self.map(self.inputs.joined(arrays))
        return logits

    def solve(
        self, batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
    ) -> dict[str, float]:
        """Set the map to the closed form; returns what was chosen, for the record."""
        return solve_together([self], batches, validation)[0]

    def take(self, fitted: RidgeFit) -> dict[str, float]:
        """Set the map to a solution; returns what was chosen."""
        weight, bias = as_logits(fitted, self.spec.task)
        with torch.no_grad():
            self.map.weight.copy_(weight.T)
            self.map.bias.copy_(bias)
        return fitted.chosen()


def solve_together(
    heads: Sequence[Ridge], batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
) -> list[dict[str, float]]:
    """Solve heads of several grids of lambda; those that read the same arrays share one factorisation."""
    found: list[dict[str, float]] = [{} for _ in heads]
    for group in alike([head.inputs for head in heads]):
        first = heads[group[0]]
        fits = solve_ridges(first.inputs, batches, first.spec, [heads[place].penalties for place in group], validation)
        for place, fitted in zip(group, fits, strict=True):
            found[place] = heads[place].take(fitted)
    return found


def as_logits(fitted: RidgeFit, task: Task) -> tuple[Tensor, Tensor]:
    """Return the (D, C) weight and (C,) bias whose outputs are logits."""
    shift = 0.5 if task == "multilabel" else 0.0
    return fitted.temperature * fitted.weight, fitted.temperature * (fitted.bias - shift)


def build(spec: HeadSpec, *, lambdas: tuple[float, ...] = LAMBDAS) -> Ridge:
    """Return a ridge probe; `lambdas` are the penalties per row to choose from by leave-one-out.

    Raises:
        ConfigError: a penalty is not positive and finite.
    """
    bad = [value for value in lambdas if not 0 < value < math.inf]
    if bad or not lambdas:
        raise ConfigError([f"lambdas must be positive, got {bad or 'none'}"])
    return Ridge(spec, tuple(sorted(lambdas)))
