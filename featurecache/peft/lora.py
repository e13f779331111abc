"""Low-rank change of the map to queries, keys and values in every block; it can be folded in.

In the form of the PEFT study: one map down for all three, no factor alpha / rank.
"""

from __future__ import annotations

from torch import Tensor, nn

from featurecache.checks import check
from featurecache.peft import Adapted
from featurecache.peft._blocks import transformer_of
from featurecache.peft._injection import Injection, Part
from featurecache.peft._start import Compat, linear, overwrite

PAPER = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, https://arxiv.org/abs/2106.09685"
LEARNING_RATE = 1e-3


class LowRank(Part):
    """up(down(dropout(x))), to be added to what a linear map makes of x."""

    def __init__(self, given: int, made: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.down = linear(given, rank, bias=False)
        self.up = linear(rank, made, bias=False, start="zero")

    def added(self, given: Tensor, found: Tensor) -> Tensor:
        """(B, T, D), (B, T, 3D) -> (B, T, 3D)."""
        change: Tensor = self.up(self.down(self.dropout(given)))
        return found + self.strength * change

    def delta(self) -> Tensor:
        """(3D, D), the same change as one matrix."""
        return self.strength * self.up.weight @ self.down.weight


def apply(module: nn.Module, *, rank: int = 8, dropout: float = 0.1, compat: Compat = "none") -> Adapted:
    """Add a change of rank `rank` to queries, keys and values; compat=osu starts both maps small and random.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    vit = transformer_of(module, "lora")
    check(
        (
            1 <= rank <= vit.width,
            f"rank must lie in 1..{vit.width}, the width of {type(vit.body).__name__}, got {rank}",
        ),
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
    )
    put, changes = Injection(module), []
    for block in vit.blocks:
        qkv = block.attention.first
        part = LowRank(qkv.in_features, qkv.out_features, rank, dropout)
        if compat == "osu":
            overwrite(part)
        put.after(qkv, put.add(block.attention.core, "lora", part).added)
        changes.append((qkv, part))

    def fold() -> None:
        for qkv, part in changes:
            qkv.weight.add_(part.delta())

    return put.adapted(fold=fold)
