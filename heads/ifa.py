"""Intermediate feature aggregation: an affine map that reads the class token of every layer.

aggregate=concat:  logits = W [x_1; ...; x_L] + b, a map of its own for every layer, of any width;
aggregate=layers:  logits = W LN(relu(sum_l a_l x_l + a_0)) + b, one learned weight a layer, equal widths: the baseline
                   of work on fine-grained recognition with frozen vision transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from heads import HeadSpec
from heads._inputs import Inputs
from heads._outputs import Outputs

CONSUMES = "all"
LEARNING_RATE = 3e-4

Aggregate = Literal["concat", "layers"]


class Concatenated(nn.Module):
    """All layers side by side through one affine map."""

    def __init__(self, spec: HeadSpec, dropout: float) -> None:
        super().__init__()
        self.inputs, self.dropout = Inputs(spec), dropout
        self.map = nn.Linear(self.inputs.width, spec.num_classes)
        self.outputs = Outputs(spec)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """L arrays of (B, D_l) -> (B, C) logits."""
        features = F.dropout(self.inputs.joined(arrays), self.dropout, self.training)
        logits: Tensor = self.outputs(self.map(features))
        return logits


class Weighed(nn.Module):
    """One affine map over the axis of layers, then relu, LayerNorm and the classes' affine map."""

    def __init__(self, spec: HeadSpec, dropout: float) -> None:
        super().__init__()
        self.inputs, self.dropout = Inputs(spec), dropout
        width = self.inputs.widths[-1]
        self.layers = nn.Linear(len(self.inputs.widths), 1)
        self.norm = nn.LayerNorm(width)
        self.map = nn.Linear(width, spec.num_classes)
        self.outputs = Outputs(spec)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """L arrays of (B, D) -> (B, C) logits."""
        mixed = self.layers(torch.stack(self.inputs(arrays), dim=-1)).squeeze(-1)
        features = F.dropout(self.norm(mixed.relu()), self.dropout, self.training)
        logits: Tensor = self.outputs(self.map(features))
        return logits


def build(spec: HeadSpec, *, aggregate: Aggregate = "concat", dropout: float = 0.0) -> Concatenated | Weighed:
    """Return the head for the arrays of `spec`, one a layer; `dropout` is the share of features that a step drops.

    Raises:
        ConfigError: lists every option out of range; `layers` of different widths have no sum.
    """
    widths = {name: shape[-1] for name, shape in spec.shapes.items()}
    said = ", ".join(f"{name} {width}" for name, width in widths.items())
    equal = len(set(widths.values())) == 1
    check(
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
        (spec.combine == "concat", "ifa reads every layer by itself: --layers mean does not apply"),
        (equal or aggregate == "concat", f"aggregate=layers needs equal widths, got {said}. Give aggregate=concat"),
    )
    return Concatenated(spec, dropout) if aggregate == "concat" else Weighed(spec, dropout)
