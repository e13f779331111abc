"""DTL+: DTL whose side network mixes neighbouring positions by a depth-wise convolution before each injection.

One convolution serves a whole ViT, and each stage of a Swin; the class token passes it by.
"""

from __future__ import annotations

from torch import nn

from featurecache.peft import Adapted
from featurecache.peft._side_network import Compat, Mixing, attach
from featurecache.peft.dtl import LEARNING_RATE

__all__ = ["LEARNING_RATE", "PAPER", "apply"]

PAPER = (
    "Fu et al., DTL: Disentangled Transfer Learning for Visual Recognition, AAAI 2024, https://arxiv.org/abs/2312.07856"
)


def apply(
    module: nn.Module, *, rank: int | None = None, products: str = "auto", injections: str = "auto", beta: float = 100.0,
    kernel: int | None = None, mixing: Mixing = "default", no_grad: bool = False, compat: Compat = "none",
) -> Adapted:  # fmt: skip
    """Put the side network of DTL+ beside a ViT or a Swin; options as in `dtl`.

    `kernel` is the side of the convolution, by default 3 in a ViT and 5 in a Swin; `mixing` starts it as published, at
    random, or as the identity. `compat=published` also keeps the four convolutions of a Swin, used or not.

    Raises:
        BackboneError, ConfigError: as in `dtl`.
    """
    return attach(
        module, "dtl_plus", rank=rank, products=products, injections=injections, beta=beta, kernel=kernel, mixing=mixing,
        no_grad=no_grad, compat=compat,
    )  # fmt: skip
