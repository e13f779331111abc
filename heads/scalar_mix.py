"""Scalar mix: one learned weight for every layer, then an affine map of the mixed features.

    logits = W (gamma * sum_l softmax(s)_l P_l x_l) + b.
Where all layers have one width, P_l is the identity, as published; where they do not, each layer is mapped to the width of
the last one by a matrix of its own. Features are standardised layer by layer, which does what the paper's optional layer
norm is for: no layer weighs more because its values are larger.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from featurecache.checks import check
from heads import HeadSpec
from heads._inputs import Inputs
from heads._outputs import Outputs

PAPER = "Deep contextualized word representations (2018)"
CONSUMES = "all"
LEARNING_RATE = 3e-3


class ScalarMix(nn.Module):
    """A weighted mean of the layers through one affine map."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.inputs = Inputs(spec)
        widths = self.inputs.widths
        self.scores = nn.Parameter(torch.zeros(len(widths)))
        self.gamma = nn.Parameter(torch.ones(()))
        equal = len(set(widths)) == 1
        self.projections = None if equal else nn.ModuleList(nn.Linear(d, widths[-1], bias=False) for d in widths)
        self.map = nn.Linear(widths[-1], spec.num_classes)
        self.outputs = Outputs(spec)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """L arrays of (B, D_l) -> (B, C) logits."""
        layers = self.inputs(arrays)
        if self.projections is not None:
            layers = [project(x) for project, x in zip(self.projections, layers, strict=True)]
        mixed = torch.einsum("l,lbd->bd", self.weights(), torch.stack(layers))
        logits: Tensor = self.outputs(self.map(self.gamma * mixed))
        return logits

    def weights(self) -> Tensor:
        """Return the (L,) weights of the layers, which sum to one."""
        return self.scores.softmax(dim=-1)


def build(spec: HeadSpec) -> ScalarMix:
    """Return a scalar mix of the arrays of `spec` that starts at their mean.

    Raises:
        ConfigError: the arrays were asked for as their plain mean.
    """
    check((spec.combine == "concat", "scalar_mix weighs every layer by itself: --layers mean does not apply"))
    return ScalarMix(spec)
