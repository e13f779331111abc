"""Only biases learn: of patches, norms, attention and perceptrons."""

from __future__ import annotations

from torch import nn

from featurecache.errors import BackboneError
from featurecache.peft import Adapted
from featurecache.peft._injection import Injection
from featurecache.peft._module import biases

PAPER = "Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning, ACL 2022, https://arxiv.org/abs/2106.10199"
LEARNING_RATE = 1e-3


def apply(module: nn.Module) -> Adapted:
    """Train every bias that a feature passes through.

    Raises:
        BackboneError: there is none.
    """
    names = biases(module)
    if not names:
        raise BackboneError(f"{type(module).__name__} cannot take the method bitfit: it has no biases.")
    return Injection(module).adapted(also=names, fold=lambda: None, line=True)
