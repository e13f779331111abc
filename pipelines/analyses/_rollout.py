"""Attention rollout: how much of each patch reaches the class token through several blocks.

Abnar & Zuidema, Quantifying Attention Flow in Transformers, ACL 2020: heads are averaged, the identity stands for the
residual path, rows are scaled to sum 1, and later blocks are multiplied from the left. Where the grid shrinks in between,
as in ILA, the step is a fixed mean: a patch comes in equal parts from the neighbourhood that it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def rollout(maps: Sequence[Tensor], sizes: Sequence[Size] | None = None, *, prefix: int = 1) -> Tensor:
    """(B, H, T, T) maps of consecutive blocks, after the softmax -> (B, T_last, T_first), rows of sum 1.

    `sizes` are the grids that the blocks work on, needed where they differ.
    """
    found = _step(maps[0])
    for number in range(1, len(maps)):
        if sizes is not None and sizes[number] != sizes[number - 1]:
            found = shrinking(sizes[number - 1], sizes[number], prefix).to(found) @ found
        found = _step(maps[number]) @ found
    return found


def _step(maps: Tensor) -> Tensor:
    mean = maps.mean(1)
    mean = mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    return mean / mean.sum(-1, keepdim=True)


def shrinking(before: Size, after: Size, prefix: int) -> Tensor:
    """Return (T_after, T_before): each patch in equal parts from the window it was made of, tokens before them from themselves."""
    rows, columns = (old - new + 1 for old, new in zip(before, after, strict=True))
    grid = torch.eye(before[0] * before[1], dtype=torch.float64).reshape(-1, 1, *before)
    windows = F.avg_pool2d(grid, (rows, columns), 1).flatten(1).T
    found = torch.zeros(prefix + after[0] * after[1], prefix + before[0] * before[1], dtype=torch.float64)
    found[:prefix, :prefix] = torch.eye(prefix, dtype=torch.float64)
    found[prefix:, prefix:] = windows
    return found


def mask_of(flow: Tensor, prefix: int = 1) -> Tensor:
    """(B, T, T') -> (B, N): what of each patch reaches the class token; class token and registers are left out."""
    return flow[:, 0, prefix:]


def single(maps: Tensor, prefix: int = 1) -> Tensor:
    """(B, H, T, T) -> (B, N): what the class token attends to in one block, heads averaged."""
    return mask_of(maps.mean(1), prefix)


def likeness(tokens: Tensor, prefix: int = 1) -> Tensor:
    """(B, P + N, D) -> (B, N) cosine of every patch to the class token; to the mean patch in a model that has none."""
    patches = tokens[:, prefix:]
    whole = tokens[:, :1] if prefix else patches.mean(1, keepdim=True)
    return F.cosine_similarity(whole, patches, dim=-1)


def placed(mask: Tensor, size: Size, whole: Size) -> Tensor:
    """(B, h*w) on a grid that lost its border -> (B, H, W), NaN where nothing was left: patches stand where they are in the image."""
    if size == whole:
        return mask.reshape(-1, *whole)
    top, left = ((outer - inner) // 2 for outer, inner in zip(whole, size, strict=True))
    found = torch.full((len(mask), *whole), torch.nan, dtype=mask.dtype, device=mask.device)
    found[:, top : top + size[0], left : left + size[1]] = mask.reshape(-1, *size)
    return found
