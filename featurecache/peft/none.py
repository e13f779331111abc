"""Nothing of the backbone is trained: only the head learns, on features as they come."""

from __future__ import annotations

from torch import nn

from featurecache.peft import Adapted
from featurecache.peft._module import untouched

LEARNING_RATE = 0.0


def apply(module: nn.Module) -> Adapted:
    """Leave the module as it is, frozen and in eval mode."""
    return untouched(module)
