"""Multilayer perceptron: affine maps with a non-linearity between them, one hidden layer unless more are asked for.

h_0 = x,  h_i = dropout(f(norm(W_i h_{i-1} + b_i))),  logits = W h_depth + b.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from featurecache.checks import check
from heads import HeadSpec
from heads._inputs import Inputs
from heads._outputs import Outputs

CONSUMES = "last"
LEARNING_RATE = 1e-3

Activation = Literal["gelu", "relu", "silu", "tanh"]
ACTIVATIONS: Mapping[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Perceptron(nn.Module):
    """Standardised features through `depth` hidden layers of `width`."""

    def __init__(
        self, spec: HeadSpec, width: int, depth: int, activation: Activation, dropout: float, norm: bool
    ) -> None:
        super().__init__()
        self.inputs = Inputs(spec)
        blocks: list[nn.Module] = []
        for number in range(depth):
            blocks.append(nn.Linear(width if number else self.inputs.width, width))
            blocks += [nn.LayerNorm(width)] if norm else []
            blocks += [ACTIVATIONS[activation](), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*blocks)
        self.map = nn.Linear(width, spec.num_classes)
        self.outputs = Outputs(spec)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, D) -> (B, C) logits."""
        logits: Tensor = self.outputs(self.map(self.hidden(self.inputs.joined(arrays))))
        return logits


def build(
    spec: HeadSpec,
    *,
    width: int = 512,
    depth: int = 1,
    activation: Activation = "gelu",
    dropout: float = 0.0,
    norm: bool = False,
) -> Perceptron:
    """Return a perceptron of `depth` hidden layers of `width` units; `norm` puts a LayerNorm before each `activation`.

    `dropout` is the share of hidden units that a training step drops.

    Raises:
        ConfigError: lists every option out of range.
    """
    check(
        (width > 0, f"width must be positive, got {width}"),
        (depth > 0, f"depth must be positive, got {depth}; without a hidden layer it is the head linear"),
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
    )
    return Perceptron(spec, width, depth, activation, dropout, norm)
