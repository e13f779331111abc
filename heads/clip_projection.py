"""Linear probing in CLIP's manner: the projection of the image tower is trained, from its own values, the texts are as they are.

    logits = tau * drop(x W / |x W|) . text
With `train_classes` tau and the texts are the start of a linear classifier with a bias, which is trained too.
x is the class token of the last layer after its norm, W (D, E) the projection. As published, features are dropped after they
are brought to length one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from heads import HeadSpec
from heads._clip import EMBEDDING, IMAGE_PROJECTION, LOGIT_SCALE, check_constants, ensembled, unit
from heads._inputs import Inputs

PAPER = "Layer-wise Features Aggregation, its baseline of linear probing (2024)"
CONSUMES = "last"
CONSTANTS = (EMBEDDING, IMAGE_PROJECTION, LOGIT_SCALE)
STANDARDISED = False
LEARNING_RATE = 1e-4
"""Of AdamW, as for the projections of `lfa_clip`."""


class ClipProjection(nn.Module):
    """A trained projection into the joint space, compared with the texts; see the head of this file."""

    scale: Tensor
    classes: Tensor

    def __init__(self, spec: HeadSpec, dropout: float, train_classes: bool) -> None:
        super().__init__()
        check_constants("clip_projection", spec, CONSTANTS)
        self.inputs, self.dropout = Inputs(spec), dropout
        projection = spec.constants[IMAGE_PROJECTION][0].float()
        check(
            (
                len(spec.shapes) == 1 and self.inputs.width == len(projection),
                f"clip_projection reads one layer of {len(projection)} dimensions, which CLIP's projection takes, got "
                f"{', '.join(f'{name} {shape[-1]}' for name, shape in spec.shapes.items())}. Leave --layers out",
            ),
        )
        self.weight = nn.Parameter(projection.clone())
        self.register_buffer("scale", spec.constants[LOGIT_SCALE].float().exp().reshape(()), persistent=False)
        self.register_buffer("classes", ensembled(spec.constants[EMBEDDING].float()), persistent=False)
        self.trains_classes = train_classes
        if train_classes:
            self.class_weight = nn.Parameter(self.scale * self.classes)
            self.class_bias = nn.Parameter(torch.zeros(len(self.classes)))

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """One array of (B, D) -> (B, C) logits."""
        z = F.dropout(unit(self.inputs.joined(arrays) @ self.weight), self.dropout, self.training)
        if self.trains_classes:
            return F.linear(z, self.class_weight, self.class_bias)
        return self.scale * z @ self.classes.T


def build(spec: HeadSpec, *, dropout: float = 0.2, train_classes: bool = False) -> ClipProjection:
    """Return the head at CLIP's own projection, so that it starts at zero-shot.

    `train_classes` is the head of the PEFT study, where the vectors of the classes learn too.

    Raises:
        ConfigError: dropout out of range; no texts or no projection; another layer than the projection takes.
    """
    check((0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"))
    return ClipProjection(spec, dropout, train_classes)
