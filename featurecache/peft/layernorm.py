"""Only layer norms learn, their weights and biases."""

from __future__ import annotations

from torch import nn

from featurecache.errors import BackboneError
from featurecache.peft import Adapted
from featurecache.peft._injection import Injection
from featurecache.peft._module import norms

PAPER = "Basu et al., Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning, AAAI 2024, https://arxiv.org/abs/2304.01917"
LEARNING_RATE = 1e-3


def apply(module: nn.Module) -> Adapted:
    """Train every layer norm that a feature passes through, that before the blocks of CLIP too.

    Raises:
        BackboneError: there is none.
    """
    names = norms(module)
    if not names:
        raise BackboneError(f"{type(module).__name__} cannot take the method layernorm: it has no layer norms.")
    return Injection(module).adapted(also=names, fold=lambda: None, line=True)
