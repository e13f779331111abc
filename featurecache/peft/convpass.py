"""A small convolution over the patches beside attention and perceptron of every block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import BackboneError
from featurecache.peft import Adapted
from featurecache.peft._blocks import Transformer, transformer_of
from featurecache.peft._injection import Injection
from featurecache.peft._placing import Network
from featurecache.peft._start import Compat, linear, overwrite

PAPER = "Jie and Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, 2022, https://arxiv.org/abs/2207.07039"
LEARNING_RATE = 1e-3


class Bypass(Network):
    """scale * up(dropout(gelu(conv(gelu(down(x)))))); tokens before the patches are images of one pixel to the convolution."""

    def __init__(self, vit: Transformer, rank: int, scale: float, dropout: float, xavier: bool) -> None:
        super().__init__()
        self.prefix, self.grid, self.scale = vit.prefix, vit.grid, scale
        self.down = linear(vit.width, rank, start="xavier")
        self.conv = nn.Conv2d(rank, rank, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.up = linear(rank, vit.width, start="zero")
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        if xavier:
            nn.init.xavier_uniform_(self.conv.weight)
        else:
            nn.init.zeros_(self.conv.weight)
            nn.init.eye_(self.conv.weight.data[:, :, 1, 1])

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        code = _quick_gelu(self.down(tokens))
        patches = code[:, self.prefix :]
        maps = self.conv(patches.transpose(1, 2).reshape(patches.shape[0], -1, *self._grid(patches.shape[1])))
        single = F.linear(code[:, : self.prefix], self.conv.weight[:, :, 1, 1], self.conv.bias)
        code = torch.cat([single, maps.flatten(2).transpose(1, 2)], 1)
        found: Tensor = self.up(self.dropout(_quick_gelu(code)))
        return found * self.scale * self.strength

    def _grid(self, patches: int) -> tuple[int, int]:
        side = round(patches**0.5)
        if patches not in (self.grid[0] * self.grid[1], side * side):
            raise BackboneError(
                f"convpass needs patches in a square, or in the model's {self.grid}; there are {patches}."
            )
        return self.grid if self.grid[0] * self.grid[1] == patches else (side, side)


def _quick_gelu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(1.702 * values)


def apply(
    module: nn.Module, *, bottleneck: int = 8, scale: float = 1.0, dropout: float = 0.1, xavier: bool = False,
    compat: Compat = "none",
) -> Adapted:  # fmt: skip
    """Add a bypass that reads the norm; its convolution starts as the identity, or by xavier; compat=osu starts up too.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    vit = transformer_of(module, "convpass")
    check(
        (bottleneck >= 1, f"bottleneck must be positive, got {bottleneck}"),
        (scale > 0, f"scale must be positive, got {scale}"),
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
    )
    put = Injection(module)
    for block in vit.blocks:
        for name, branch in zip(("attention", "mlp"), block.branches, strict=True):
            part = Bypass(vit, bottleneck, scale, dropout, xavier)
            if compat == "osu":
                overwrite(part)
            put.add(block.module, f"{name}_bypass", part).stand(put, branch, "parallel", reads="norm")
    return put.adapted()
