"""Cosine classifier: the angle between features and a direction of each class, times a learned scale.

    logits_c = exp(s) * cos(x, w_c),   exp(s) = 1 / temperature, learned.
Lengths do not count, so a class with many rows wins nothing by a longer weight. Several labels at once have a bias each,
since half of what they say must lie below zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from heads import HeadSpec
from heads._inputs import Inputs

PAPER = "Dynamic Few-Shot Visual Learning without Forgetting (2018)"
CONSUMES = "last"
LEARNING_RATE = 3e-3


class Cosine(nn.Module):
    """Standardised features compared with C directions."""

    def __init__(self, spec: HeadSpec, temperature: float) -> None:
        super().__init__()
        self.inputs = Inputs(spec)
        self.directions = nn.Parameter(torch.empty(spec.num_classes, self.inputs.width))
        nn.init.normal_(self.directions, std=1 / math.sqrt(self.inputs.width))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.zeros(spec.num_classes)) if spec.task == "multilabel" else None

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, D) -> (B, C) logits, within the scale of zero (of the bias, for several labels)."""
        features = F.normalize(self.inputs.joined(arrays), dim=-1)
        logits = self.log_scale.exp() * (features @ F.normalize(self.directions, dim=-1).T)
        return logits if self.bias is None else logits + self.bias


def build(spec: HeadSpec, *, temperature: float = 0.1) -> Cosine:
    """Return a cosine classifier whose learned temperature starts at `temperature`.

    Raises:
        ConfigError: lists every option out of range, and a regression, whose values an angle cannot say.
    """
    check(
        (0 < temperature < math.inf, f"temperature must be positive, got {temperature}"),
        (spec.task != "regression", "cosine cannot do regression: an angle has no unit. Give --head linear or ridge"),
    )
    return Cosine(spec, temperature)
