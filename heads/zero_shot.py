"""CLIP as it comes: the class whose name is nearest to the image. Nothing is trained, no label is read.

A class is the mean over its templates of the text embeddings, each brought to length one, and again brought to length one;
logits are CLIP's own temperature times the cosine.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from heads import HeadSpec
from heads._clip import EMBEDDING, LOGIT_SCALE, Joint

PAPER = "Learning Transferable Visual Models From Natural Language Supervision (2021)"
CONSUMES = "projected"
CONSTANTS = (EMBEDDING, LOGIT_SCALE)
STANDARDISED = False
LEARNING_RATE = 0.0
FITTED = "embeddings of the class names"


class ZeroShot(Joint):
    """Cosine to the names of the classes; see the head of this file."""

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """One array of (B, E) -> (B, C) logits."""
        return self.compared(self.image(arrays), self.classes)


def build(spec: HeadSpec) -> ZeroShot:
    """Return the head for the classes that `spec` has texts of.

    Raises:
        ConfigError: no texts, or of other classes; another array than the projected one; a task without classes.
    """
    return ZeroShot("zero_shot", spec)
