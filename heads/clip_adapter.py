"""CLIP-Adapter: a residual bottleneck behind the image tower, the text as it is.

    z <- ratio * relu(W2 relu(W1 z)) + (1 - ratio) * z,   logits = tau * cos(z, text)
z is the projected vector before it is brought to length one, as published. Trained, it may stand inside `lfa_clip`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from featurecache.checks import check
from heads import HeadSpec
from heads._clip import EMBEDDING, LOGIT_SCALE, RATIO, REDUCTION, Adapter, Joint

PAPER = "CLIP-Adapter: Better Vision-Language Models with Feature Adapters (2021)"
CONSUMES = "projected"
CONSTANTS = (EMBEDDING, LOGIT_SCALE)
STANDARDISED = False
LEARNING_RATE = 1e-3


class ClipAdapter(Joint):
    """A trained residual on the image, compared with the texts; see the head of this file."""

    def __init__(self, spec: HeadSpec, reduction: int, ratio: float) -> None:
        super().__init__("clip_adapter", spec)
        width = self.inputs.width
        self.adapter = Adapter(width, max(1, width // reduction), ratio)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """One array of (B, E) -> (B, C) logits."""
        return self.compared(self.adapter(self.image(arrays)), self.classes)


def build(spec: HeadSpec, *, reduction: int = REDUCTION, ratio: float = RATIO) -> ClipAdapter:
    """Return the head; the bottleneck has E / `reduction` units, `ratio` is its share of the result.

    Raises:
        ConfigError: an option out of range; no texts, or of other classes; another array than the projected one.
    """
    check(
        (reduction > 0, f"reduction must be positive, got {reduction}"),
        (0 < ratio <= 1, f"ratio must lie in (0, 1], got {ratio}"),
    )
    return ClipAdapter(spec, reduction, ratio)
