"""Changes of all linear maps from two shared maps and a small core each, a tensor train; it can be folded in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from featurecache.peft import Adapted
from featurecache.peft._fact import Shared, factorised
from featurecache.peft._start import Compat, linear

PAPER = "Jie and Deng, FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer, AAAI 2023, https://arxiv.org/abs/2212.03145"
LEARNING_RATE = 1e-3


class Train(Shared):
    """A core of its own for each of q, k, v, proj, fc1 and fc2 of each block."""

    def __init__(self, *, width: int, rank: int, depth: int, made: tuple[int, int]) -> None:
        super().__init__(width, rank)
        sides = {
            "query": (1, 1),
            "key": (1, 1),
            "value": (1, 1),
            "proj": (1, 1),
            "fc1": (1, made[0]),
            "fc2": (made[1], 1),
        }
        self.cores = nn.ModuleList(
            nn.ModuleDict({name: linear(g * rank, m * rank, bias=False) for name, (g, m) in sides.items()})
            for _ in range(depth)
        )

    def core(self, block: int, name: str) -> Tensor:
        """(m * r, g * r)."""
        cores: Any = self.cores[block]
        if name == "qkv":
            return torch.cat([cores[part].weight for part in ("query", "key", "value")])
        found: Tensor = cores[name].weight
        return found


def apply(
    module: nn.Module, *, rank: int = 16, scale: float = 1.0, dropout: float = 0.1, compat: Compat = "none"
) -> Adapted:
    """Add scale * V C U to every linear map, U and V shared by all; compat=osu starts all of it small and random.

    Raises:
        BackboneError: the module is no vision transformer, or its maps are no multiples of its width.
    """
    return factorised(module, "fact_tt", Train, rank=rank, scale=scale, dropout=dropout, compat=compat)
