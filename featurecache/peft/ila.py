"""ILA: after a third and two thirds of the blocks, a bottleneck with convolutions that shrinks the grid of patches.

Later blocks then work on fewer tokens. Works on timm's plain ViTs.
"""

from __future__ import annotations

from torch import nn

from featurecache.peft import Adapted
from featurecache.peft._inter_layer import Form, InterLayerAdapter, Skip, Start
from featurecache.peft._layered import Compat, Inside, Placement, put_ila

__all__ = ["LEARNING_RATE", "PAPER", "STARTS_AS_BACKBONE", "Form", "InterLayerAdapter", "apply"]

PAPER = "Rios et al., Down-Sampling Inter-Layer Adapter for Parameter and Computation Efficient Ultra-Fine-Grained Image Recognition, 2024, https://arxiv.org/abs/2409.11051"
LEARNING_RATE = 1e-3
STARTS_AS_BACKBONE = False


def apply(
    module: nn.Module, *, rank: int = 8, kernel: int = 3, dilation: int = 1, down: str = "auto", keep: str = "none",
    inside: Inside = "none", placement: Placement = "both",
    groups: int = 1, norm: str = "bn", prefix_conv: bool = True, skip: Skip = "sum", start: Start | None = None,
    dropout: float = 0.1, drop_path: float = 0.0, train_cls: bool = True, compat: Compat = "none",
) -> Adapted:  # fmt: skip
    """Put inter-layer adapters after the blocks that `down` (it shrinks the grid) and `keep` (it does not) name.

    `down` and `keep` take such as 3,7 or 0-2, or none; auto is the last block of the first and of the second third, and
    `keep=rest` all other blocks. `skip` is what of its neighbourhood a patch begins with where the grid shrinks: sum, as
    published, or ones, the sum without noise; mean; centre (itself); xavier or dense (at random); or average, the mean
    for good. `norm` is bn, ln or none, or one for each of the three places, as bn,ln,none. `groups` are maps a channel of
    the convolution; 0 makes it dense. `prefix_conv=false` sends class token and registers through the patches'
    convolution, which then keeps the grid. `inside` puts an adapter into every block too, at the `placement` both (beside
    attention and perceptron), mlp (beside the perceptron) or after (the whole block). `start=zero`, the default: what is
    added begins at zero, so with `down=none` the model says what it said, and with `skip=centre` what it says on the
    cropped grid. `compat=published` begins at random, and drops inside the frozen blocks in training.

    Raises:
        BackboneError: no plain ViT of timm.
        ConfigError: blocks that the model does not have, a grid too small, a number out of range.
    """
    return put_ila(
        module, "ila", rank=rank, kernel=kernel, dilation=dilation, down=down, keep=keep, inside=inside, placement=placement,
        groups=groups, norm=norm, prefix_conv=prefix_conv, skip=skip, start=start, dropout=dropout, drop_path=drop_path,
        train_cls=train_cls, compat=compat,
    )  # fmt: skip
