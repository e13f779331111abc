"""How far the tokens of a layer lie apart, and how much the class token attends to patches: signs of collapse."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

COARSE = 7
"""Rows and columns to which a grid of patches is pooled before tokens are compared."""


def coarse(tokens: Tensor, prefix: int, size: tuple[int, int], side: int = COARSE) -> Tensor:
    """(n, P + H*W, D) -> (n, P + side*side, D): patches pooled to a grid of at most `side`, the tokens before them as they are."""
    first, patches = tokens[:, :prefix], tokens[:, prefix:]
    grid = patches.transpose(1, 2).unflatten(2, size)
    pooled = F.adaptive_avg_pool2d(grid, (side, side))
    return torch.cat([first, pooled.flatten(2).transpose(1, 2)], 1)


def spread(tokens: Tensor) -> dict[str, float]:
    """Return of (n, T, D) the mean length of a token, the mean distance of two, and that over the largest distance."""
    rows = tokens.flatten(0, -2).double()
    count = len(rows)
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    mean = float(distances.sum()) / (count * (count - 1)) if count > 1 else math.nan
    largest = float(distances.max())
    return {
        "length": float(rows.norm(dim=1).mean()),
        "distance": mean,
        "scaled_distance": mean / largest if largest else 0.0,
    }


def class_attention(maps: Tensor, prefix: int = 1) -> dict[str, float]:
    """Return mean and deviation of what the class token gives the patches, over images and heads, of (n, H, T, T) maps."""
    found = maps[:, :, 0, prefix:].double()
    return {"mean": float(found.mean()), "std": float(found.std())}
