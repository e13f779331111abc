"""A bottleneck beside the perceptron of every block, which reads the stream before the norm."""

from __future__ import annotations

from torch import nn

from featurecache.peft import Adapted
from featurecache.peft._adapters import Scale, adapters
from featurecache.peft._start import Compat

PAPER = "Chen et al., AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition, NeurIPS 2022, https://arxiv.org/abs/2205.13535"
LEARNING_RATE = 1e-3


def apply(
    module: nn.Module, *, bottleneck: int = 64, scale: Scale = 0.1, dropout: float = 0.1, compat: Compat = "none"
) -> Adapted:  # fmt: skip
    """Add scale * up(relu(down(x))) to the stream; up starts at zero, with compat=osu both maps small and random.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    return adapters(
        module, "adaptformer", attention="none", mlp="parallel", reads="stream", start="lora_kaiming",
        bottleneck=bottleneck, scale=scale, dropout=dropout, compat=compat,
    )  # fmt: skip
