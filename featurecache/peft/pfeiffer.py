"""A bottleneck after the perceptron of every block."""

from __future__ import annotations

from torch import nn

from featurecache.peft import Adapted
from featurecache.peft._adapters import Scale, Start, adapters
from featurecache.peft._start import Compat

PAPER = "Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition for Transfer Learning, EACL 2021, https://arxiv.org/abs/2005.00247"
LEARNING_RATE = 1e-3


def apply(
    module: nn.Module, *, bottleneck: int = 8, scale: Scale = 1.0, dropout: float = 0.1, start: Start = "lora_xavier", compat: Compat = "none"
) -> Adapted:  # fmt: skip
    """Add scale * up(relu(down(h))) to h, what the perceptron gives; start=xavier is the study's random start.

    compat=osu starts both maps small and random, and lets LayerScale and drop path act twice.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    return adapters(
        module, "pfeiffer", attention="none", mlp="after", start=start,
        bottleneck=bottleneck, scale=scale, dropout=dropout, compat=compat,
    )  # fmt: skip
