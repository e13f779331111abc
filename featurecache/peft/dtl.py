"""DTL: low-rank products of block inputs, summed beside the frozen net and injected into its later blocks only.

Early blocks then keep no activations for the gradient. Works on ViTs and Swins (where each stage has its own sum).
"""

from __future__ import annotations

from torch import nn

from featurecache.peft import Adapted
from featurecache.peft._side_network import Compat, attach

PAPER = (
    "Fu et al., DTL: Disentangled Transfer Learning for Visual Recognition, AAAI 2024, https://arxiv.org/abs/2312.07856"
)
LEARNING_RATE = 1e-3


def apply(
    module: nn.Module, *, rank: int | None = None, products: str = "auto", injections: str = "auto", beta: float = 100.0,
    no_grad: bool = False, compat: Compat = "none",
) -> Adapted:  # fmt: skip
    """Put the side network of DTL beside a ViT or a Swin; what the model says at the start stays exactly what it was.

    `products` and `injections` name blocks, as 0-5 or 0-2,5: whose inputs are read, and whose outputs are added to; auto is
    what was published, for any depth: all blocks of a ViT (the last two stages of a Swin), and the later half of these.
    `rank` is by default 2 in a ViT and 4 in a Swin. `no_grad` runs the blocks up to the first injection without gradients
    at all. `compat=published` pools the patches of a ViT before its final norm and keeps products that nothing reads.

    Raises:
        BackboneError: neither a ViT nor a Swin; names what would do.
        ConfigError: blocks that the model does not have, an injection before the first product, a number out of range.
    """
    return attach(
        module, "dtl", rank=rank, products=products, injections=injections, beta=beta, kernel=0, no_grad=no_grad,
        compat=compat,
    )  # fmt: skip
