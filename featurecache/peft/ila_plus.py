"""ILA+: ILA with a module that keeps the grid after every other block as well.

Works on timm's plain ViTs.
"""

from __future__ import annotations

from torch import nn

from featurecache.peft import Adapted
from featurecache.peft._inter_layer import Skip, Start
from featurecache.peft._layered import Compat, put_ila
from featurecache.peft.ila import LEARNING_RATE, STARTS_AS_BACKBONE

__all__ = ["LEARNING_RATE", "PAPER", "STARTS_AS_BACKBONE", "apply"]

PAPER = "Rios et al., Down-Sampling Inter-Layer Adapter for Parameter and Computation Efficient Ultra-Fine-Grained Image Recognition, 2024, https://arxiv.org/abs/2409.11051"


def apply(
    module: nn.Module, *, rank: int = 8, kernel: int = 3, dilation: int = 1, down: str = "auto", groups: int = 1,
    norm: str = "bn", prefix_conv: bool = True, skip: Skip = "sum", start: Start | None = None,
    dropout: float = 0.1, drop_path: float = 0.0, train_cls: bool = True, compat: Compat = "none",
) -> Adapted:  # fmt: skip
    """Put the modules in; options as in `ila`.

    Raises:
        BackboneError, ConfigError: as in `ila`.
    """
    return put_ila(
        module, "ila_plus", rank=rank, kernel=kernel, dilation=dilation, down=down, keep="rest", groups=groups, norm=norm,
        prefix_conv=prefix_conv, skip=skip, start=start, dropout=dropout, drop_path=drop_path, train_cls=train_cls,
        compat=compat,
    )  # fmt: skip
