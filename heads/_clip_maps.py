"""The maps of queries, keys and values in `lfa_clip`: without bias, trained as a whole or beside a frozen one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LOW_RANK_DROPOUT = 0.25
"""As published: of what the low-rank part adds."""


class Maps(nn.Module):
    """Some of the maps `query`, `key` and `value` of one attention, all (width -> joint)."""

    def __init__(self, names: tuple[str, ...], width: int, joint: int, rank: int | None) -> None:
        super().__init__()
        for name in names:
            made = nn.Linear(width, joint, bias=False) if rank is None else LowRank(width, joint, rank)
            self.add_module(name, made)

    def forward(self, name: str, x: Tensor) -> Tensor:
        """(..., width) through one of them -> (..., joint)."""
        found: Tensor = self.get_submodule(name)(x)
        return found

    def start_at(self, projection: Tensor, names: tuple[str, ...]) -> None:
        """Set those of the maps that it has to a (width, joint) projection."""
        with torch.no_grad():
            for name, one in self.named_children():
                if name in names:
                    one.get_parameter("weight").copy_(projection.T)


class LowRank(nn.Module):
    """x W + dropout(up(down(x))): W is frozen; `up` does not begin at zero, so the start is not quite W, as published."""

    def __init__(self, width: int, joint: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(width, joint, bias=False).weight.detach(), requires_grad=False)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, joint, bias=False)
        self.dropout = nn.Dropout(LOW_RANK_DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., joint)."""
        added: Tensor = self.dropout(self.up(self.down(x)))
        return nn.functional.linear(x, self.weight) + added
