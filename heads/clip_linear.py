"""A linear classifier in CLIP's joint space: tau times the cosine to a learned vector for each class.

It starts at the zero-shot classifier, so that it is never worse than that on validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from heads import HeadSpec
from heads._clip import EMBEDDING, LOGIT_SCALE, Joint

CONSUMES = "projected"
CONSTANTS = (EMBEDDING, LOGIT_SCALE)
STANDARDISED = False
LEARNING_RATE = 1e-3

Start = Literal["zero_shot", "random"]


class ClipLinear(Joint):
    """Cosine to trained vectors; see the head of this file."""

    def __init__(self, spec: HeadSpec, start: Start) -> None:
        super().__init__("clip_linear", spec)
        self.weight = nn.Parameter(torch.empty(tuple(self.classes.shape)))
        nn.init.normal_(self.weight, std=self.classes.shape[-1] ** -0.5)
        if start == "zero_shot":
            with torch.no_grad():
                self.weight.copy_(self.classes)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """One array of (B, E) -> (B, C) logits."""
        return self.compared(self.image(arrays), self.weight)


def build(spec: HeadSpec, *, start: Start = "zero_shot") -> ClipLinear:
    """Return the head; `start` says where the vectors of the classes begin: at their texts, or drawn.

    Raises:
        ConfigError: no texts, or of other classes; another array than the projected one; a task without classes.
    """
    return ClipLinear(spec, start)
