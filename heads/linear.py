"""Linear probe: one affine map, the baseline that every other head must beat.

Trained by steps where rows are many. Where they are few (`HeadSpec.converge`) it ends at its optimum, a logistic regression
whose penalty is chosen by the loss on validation rows or by folds (`heads/logistic.py`); a regression at the ridge of
`heads/ridge.py`. A linear probe that is a few steps from a random start says nothing of the features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads._inputs import Inputs, alike
from heads._outputs import Outputs
from heads.logistic import fit_logistic
from heads.ridge import as_logits, solve_ridge

CONSUMES = "last"
LEARNING_RATE = 1e-3
FITTED = "converged optimum"
CONVERGES = 2000

Start = Literal["auto", "random", "ridge"]


class Linear(nn.Module):
    """Standardised features through one affine map."""

    def __init__(self, spec: HeadSpec, bias: bool) -> None:
        super().__init__()
        self.spec = spec
        self.inputs = Inputs(spec)
        self.map = nn.Linear(self.inputs.width, spec.num_classes, bias=bias)
        self.outputs = Outputs(spec)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, D) -> (B, C) logits."""
        logits: Tensor = self.outputs(self.map(self.inputs.joined(arrays)))
        return logits


class Begun(Linear):
    """The same from the closed-form ridge: a backbone that learns is not misled by a head that knows nothing yet."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__(spec, bias=True)

    def solve(
        self, batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
    ) -> dict[str, float]:
        """Set the map to the closed form; returns what was chosen, for the record."""
        return solve_together([self], batches, validation)[0]


class LinearOptimum(Begun):
    """The same at the optimum of its penalised loss. Solved, never trained by steps."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__(spec)
        self.map.requires_grad_(False)


def solve_together(
    heads: Sequence[Linear], batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
) -> list[dict[str, float]]:
    """Solve many heads, those at random left where they are; the others share what they are solved for."""
    found: list[dict[str, float]] = [{} for _ in heads]
    solved = {place: head for place, head in enumerate(heads) if isinstance(head, Begun)}
    for numbers in alike([head.inputs for head in solved.values()]):
        group = [list(solved)[number] for number in numbers]
        first = solved[group[0]]
        if isinstance(first, LinearOptimum) and first.spec.task != "regression":
            (fitted,) = fit_logistic(first.inputs, batches, first.spec, [None], validation=validation)
            weight, bias, facts = fitted.weight, fitted.bias, fitted.facts
        else:
            ridge = solve_ridge(first.inputs, batches, first.spec, validation=validation)
            columns, bias = as_logits(ridge, first.spec.task)
            weight, facts = columns.T, ridge.chosen()
        for place in group:
            _set(heads[place], weight, bias)
            found[place] = facts
    return found


@torch.no_grad()
def _set(head: Linear, weight: Tensor, bias: Tensor) -> None:
    weight, bias = head.outputs.invert_affine(weight, bias)
    head.map.weight.copy_(weight)
    head.map.bias.copy_(bias)


def build(spec: HeadSpec, *, bias: bool = True, start: Start = "auto") -> Linear:
    """Return a linear probe.

    Args:
        spec: what it reads and says.
        bias: whether logits have an intercept.
        start: "random", torch's default; "ridge", the closed form, from which training goes on (Kumar et al., 2022,
            arXiv:2202.10054); "auto", the optimum itself where `spec` says that rows are few, else "random".

    Raises:
        ConfigError: a ridge without a bias.
    """
    check((bias or start != "ridge", "start=ridge sets a bias: leave bias=false out, or the start"))
    if start == "auto" and spec.converge and bias:
        return LinearOptimum(spec)
    return Begun(spec) if start == "ridge" else Linear(spec, bias)
