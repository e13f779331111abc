"""A linear bottleneck before attention and perceptron of every block; it can be folded in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.peft import Adapted
from featurecache.peft._blocks import transformer_of
from featurecache.peft._injection import Injection
from featurecache.peft._placing import Network

PAPER = "Luo et al., Towards Efficient Visual Adaption via Structural Re-parameterization, 2023, https://arxiv.org/abs/2302.08106"
LEARNING_RATE = 1e-3


class Groups(Network):
    """x + scale * up(dropout(down(x))), where up makes each part of the channels from its own part of the code."""

    def __init__(self, width: int, rank: int, groups: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale = scale
        self.down, self.up = nn.Conv1d(width, rank, 1), nn.Conv1d(rank, width, 1, groups=groups)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.down.weight)
        for values in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(values)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        added: Tensor = self.up(self.dropout(self.down(tokens.transpose(1, 2)))).transpose(1, 2)
        return tokens + added * self.scale * self.strength

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Return ((D, D), (D,)): the same as one affine map of columns, M x + c."""
        rows, columns = self.up.weight[..., 0].chunk(self.up.groups), self.down.out_channels // self.up.groups
        up = torch.cat([F.pad(part, (j * columns, (len(rows) - 1 - j) * columns)) for j, part in enumerate(rows)])
        down, factor = self.down.weight[..., 0], self.scale * self.strength
        eye = torch.eye(len(up), dtype=up.dtype, device=up.device)
        shift = F.linear(self.down.bias[None], up, self.up.bias)[0]  # type: ignore[index]
        return eye + factor * up @ down, factor * shift


def apply(
    module: nn.Module, *, bottleneck: int = 8, scale: float = 1.0, dropout: float = 0.1, groups: int = 2
) -> Adapted:
    """Change what attention and perceptron are given by a bottleneck of two linear maps, the second one in groups.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    vit = transformer_of(module, "repadapter")
    check(
        (bottleneck >= 1, f"bottleneck must be positive, got {bottleneck}"),
        (scale > 0, f"scale must be positive, got {scale}"),
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
        (
            groups >= 1 and bottleneck % groups == 0 and vit.width % groups == 0,
            f"groups must divide the bottleneck {bottleneck} and the width {vit.width}, got {groups}",
        ),
    )
    put, pairs = Injection(module), list[tuple[Any, Groups]]()
    for block in vit.blocks:
        for name, branch in zip(("attention", "mlp"), block.branches, strict=True):
            part = put.add(block.module, f"{name}_groups", Groups(vit.width, bottleneck, groups, scale, dropout))
            part.stand(put, branch, "before")
            pairs.append((branch.first, part))

    def fold() -> None:
        for first, part in pairs:
            matrix, shift = part.matrix()
            if first.bias is None:
                first.bias = nn.Parameter(first.weight @ shift, requires_grad=False)
            else:
                first.bias.add_(first.weight @ shift)
            first.weight.copy_(first.weight @ matrix)

    return put.adapted(fold=fold)
