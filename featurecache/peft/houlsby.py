"""A bottleneck after the attention and one after the perceptron of every block."""

from __future__ import annotations

from torch import nn

from featurecache.peft import Adapted
from featurecache.peft._adapters import Scale, Start, adapters
from featurecache.peft._start import Compat

PAPER = "Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, https://arxiv.org/abs/1902.00751"
LEARNING_RATE = 1e-3
STARTS_AS_BACKBONE = False


def apply(
    module: nn.Module, *, bottleneck: int = 8, scale: Scale = 0.1, dropout: float = 0.1, start: Start = "xavier", compat: Compat = "none"
) -> Adapted:  # fmt: skip
    """Add scale * up(relu(down(h))) to h, what attention and perceptron give; it starts at random, but small.

    The default of `scale` is one of the study's grid that starts near the backbone; with 1 few steps end below a linear head.

    compat=osu starts both maps small and random, and lets LayerScale and drop path act twice.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    return adapters(
        module, "houlsby", attention="after", mlp="after", start=start,
        bottleneck=bottleneck, scale=scale, dropout=dropout, compat=compat,
    )  # fmt: skip
