"""Changes of all linear maps from two shared maps, one core and its factors, a Tucker form; it can be folded in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featurecache.peft import Adapted
from featurecache.peft._fact import Shared, factorised
from featurecache.peft._start import Compat

PAPER = "Jie and Deng, FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer, AAAI 2023, https://arxiv.org/abs/2212.03145"
LEARNING_RATE = 1e-3

ATTENTION = 4
"""Columns of a block before those of its perceptron: q, k, v, proj."""


class Tucker(Shared):
    """One (r, r, r) core, mixed for every matrix by a column of the factors."""

    def __init__(self, *, width: int, rank: int, depth: int, made: tuple[int, int]) -> None:
        super().__init__(width, rank)
        self.made, self.columns = made, ATTENTION + sum(made)
        self.tensor = nn.Parameter(torch.empty(rank, rank, rank))
        self.factors = nn.Parameter(torch.empty(rank, depth * self.columns))
        for values in (self.tensor, self.factors):
            nn.init.xavier_uniform_(values)

    def matrices(self, first: int, count: int) -> Tensor:
        """(r, r, count) matrices that act on rows, u @ matrix."""
        return self.tensor @ self.factors[:, first : first + count]

    def core(self, block: int, name: str) -> Tensor:
        """(m * r, g * r); of fc1 and fc2 with the columns as the fastest index of the joint side."""
        start, (wide, read) = block * self.columns, self.made
        if name == "qkv":
            return torch.cat([self.matrices(start + j, 1)[..., 0].T for j in range(3)])
        if name == "proj":
            return self.matrices(start + 3, 1)[..., 0].T
        if name == "fc1":
            return self.matrices(start + ATTENTION, wide).flatten(1).T
        return self.matrices(start + ATTENTION + wide, read).flatten(1)


def apply(
    module: nn.Module, *, rank: int = 32, scale: float = 1.0, dropout: float = 0.1, compat: Compat = "none"
) -> Adapted:
    """Add scale * V C U to every linear map, all C from one tensor; compat=osu starts U and V small and random.

    Raises:
        BackboneError: the module is no vision transformer, or its maps are no multiples of its width.
    """
    return factorised(module, "fact_tk", Tucker, rank=rank, scale=scale, dropout=dropout, compat=compat)
