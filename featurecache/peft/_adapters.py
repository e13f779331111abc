"""The bottleneck that all adapters of the PEFT study share, and how it is put at the branches of every block."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.peft import Adapted
from featurecache.peft._blocks import transformer_of
from featurecache.peft._injection import Injection
from featurecache.peft._placing import Network, Place, Reads
from featurecache.peft._start import Compat, linear, overwrite

Start = Literal["lora_kaiming", "lora_xavier", "xavier", "zero"]
Scale = float | Literal["learned"]


class Bottleneck(Network):
    """scale * up(dropout(relu(down(x))))."""

    def __init__(self, width: int, rank: int, scale: Scale, dropout: float, start: Start) -> None:
        super().__init__()
        kind = {"lora_kaiming": "kaiming", "lora_xavier": "xavier", "xavier": "xavier", "zero": "kaiming"}[start]
        self.down = linear(width, rank, start=kind)
        self.dropout = nn.Dropout(dropout)
        self.up = linear(rank, width, start="xavier" if start == "xavier" else "zero")
        if start == "xavier":
            for part in (self.down, self.up):
                nn.init.normal_(part.bias, std=1e-6)
        self.scale = nn.Parameter(torch.ones(1)) if scale == "learned" else scale

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        found: Tensor = self.up(self.dropout(self.down(tokens).relu()))
        return found * self.scale * self.strength


def adapters(
    module: nn.Module, method: str, *, attention: Place, mlp: Place, reads: Reads = "norm", start: Start, bottleneck: int,
    scale: Scale, dropout: float, compat: Compat,
) -> Adapted:  # fmt: skip
    """Put a bottleneck at `attention` and `mlp` of every block.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    vit = transformer_of(module, method)
    check(
        (bottleneck >= 1, f"bottleneck must be positive, got {bottleneck}"),
        (scale == "learned" or float(scale) > 0, f"scale must be positive or learned, got {scale}"),
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
        ((attention, mlp) != ("none", "none"), "attention and mlp are both none, so there is nothing to train"),
    )
    put = Injection(module)
    for block in vit.blocks:
        for name, branch, place in (("attention", block.attention, attention), ("mlp", block.mlp, mlp)):
            if place != "none":
                part = Bottleneck(vit.width, bottleneck, scale, dropout, start)
                if compat == "osu":
                    overwrite(part)
                put.add(block.module, f"{name}_adapter", part)
                part.stand(put, branch, place, reads=reads, twice=compat == "osu")
    return put.adapted()
