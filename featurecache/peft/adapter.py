"""A bottleneck at the attention, the perceptron or both of every block: beside it, after it or before it."""

from __future__ import annotations

from torch import nn

from featurecache.peft import Adapted
from featurecache.peft._adapters import Scale, Start, adapters
from featurecache.peft._placing import Place, Reads
from featurecache.peft._start import Compat

PAPER = "Mai et al., Lessons and Insights from a Unifying Study of PEFT in Visual Recognition, CVPR 2025, https://arxiv.org/abs/2409.16434"
LEARNING_RATE = 1e-3


def apply(
    module: nn.Module, *, attention: Place = "none", mlp: Place = "parallel", reads: Reads = "stream",
    start: Start = "lora_kaiming", bottleneck: int = 8, scale: Scale = 1.0, dropout: float = 0.1, compat: Compat = "none",
) -> Adapted:  # fmt: skip
    """Add down, ReLU, up; a parallel one reads the stream or its norm; compat=osu is the published code's start and drops.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    return adapters(
        module, "adapter", attention=attention, mlp=mlp, reads=reads, start=start, bottleneck=bottleneck, scale=scale,
        dropout=dropout, compat=compat,
    )  # fmt: skip
