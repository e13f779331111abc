"""Linear probe: one affine map, the baseline that every other head must beat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads._inputs import Inputs, alike
from heads.ridge import as_logits, solve_ridge

CONSUMES = "last"
LEARNING_RATE = 1e-3

Start = Literal["random", "ridge"]


class Linear(nn.Module):
    """Standardised features through one affine map."""

    def __init__(self, spec: HeadSpec, bias: bool) -> None:
        super().__init__()
        self.inputs = Inputs(spec)
        self.map = nn.Linear(self.inputs.width, spec.num_classes, bias=bias)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, D) -> (B, C) logits."""
        logits: Tensor = self.map(self.inputs.joined(arrays))
        return logits


class Begun(Linear):
    """The same from the closed-form ridge: a backbone that learns is not misled by a head that knows nothing yet."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__(spec, bias=True)
        self.spec = spec

    def solve(self, batches: Iterable[FeatureBatch]) -> dict[str, float]:
        """Set the map to the closed form; returns what was chosen, for the record."""
        return solve_together([self], batches)[0]


def solve_together(heads: Sequence[Linear], batches: Iterable[FeatureBatch]) -> list[dict[str, float]]:
    """Start many heads, those at random where they are; the others share the ridge if they read the same arrays."""
    found: list[dict[str, float]] = [{} for _ in heads]
    begun = {place: head for place, head in enumerate(heads) if isinstance(head, Begun)}
    for numbers in alike([head.inputs for head in begun.values()]):
        group = [list(begun)[number] for number in numbers]
        first = begun[group[0]]
        fitted = solve_ridge(first.inputs, batches, first.spec)
        weight, bias = as_logits(fitted, first.spec.task)
        with torch.no_grad():
            for place in group:
                heads[place].map.weight.copy_(weight.T)
                heads[place].map.bias.copy_(bias)
                found[place] = fitted.chosen()
    return found


def build(spec: HeadSpec, *, bias: bool = True, start: Start = "random") -> Linear:
    """Return a linear probe with torch's default start, or with that of ridge (Kumar et al., 2022, arXiv:2202.10054).

    Raises:
        ConfigError: a ridge without a bias.
    """
    check((bias or start == "random", "start=ridge sets a bias: leave bias=false out, or the start"))
    return Begun(spec) if start == "ridge" else Linear(spec, bias)
