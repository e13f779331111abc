"""A bottleneck after the perceptron of every block whose map up starts at zero: the baseline of the VPT paper."""

from __future__ import annotations

from torch import nn

from featurecache.peft import Adapted
from featurecache.peft._adapters import Scale, adapters
from featurecache.peft._start import Compat

PAPER = "Jia et al., Visual Prompt Tuning, ECCV 2022, https://arxiv.org/abs/2203.12119"
LEARNING_RATE = 1e-3


def apply(
    module: nn.Module, *, bottleneck: int = 8, scale: Scale = 1.0, dropout: float = 0.1, compat: Compat = "none"
) -> Adapted:  # fmt: skip
    """Add scale * up(relu(down(h))) to h, what the perceptron gives; were down zero too, nothing but one bias could learn.

    compat=osu starts both maps small and random, and lets LayerScale and drop path act twice.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    return adapters(
        module, "zero_adapter", attention="none", mlp="after", start="zero",
        bottleneck=bottleneck, scale=scale, dropout=dropout, compat=compat,
    )  # fmt: skip
