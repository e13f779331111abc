"""Kernels of a batch: how similar its rows are to each other, (B, B), and how far two such tables are apart."""

from __future__ import annotations

import torch
from torch import Tensor

GUARD = 1e-8
"""Added to norms, and to the mean square under the root (aft.md, section 2)."""


def centred(rows: Tensor) -> Tensor:
    """(B, D) -> (B, D) with the mean over the batch taken from every dimension."""
    return rows - rows.mean(0)


def directions(rows: Tensor) -> Tensor:
    """(B, D) -> (B, D): centred, then every row of length one."""
    found = centred(rows)
    lengths: Tensor = found.norm(dim=1, keepdim=True)
    return found / (lengths + GUARD)


def cosine_kernel(rows: Tensor) -> Tensor:
    """(B, D) -> (B, B) cosines of the centred rows."""
    found = directions(rows)
    return found @ found.T


def rbf_kernel(rows: Tensor) -> Tensor:
    """(B, D) -> (B, B): exp(-|a - b|^2) of the centred rows of length one; their products give the distances."""
    found = directions(rows)
    squares = (found * found).sum(1)
    apart = squares[:, None] + squares[None, :] - 2 * found @ found.T
    return torch.exp(-apart.clamp(min=0))


def product_kernel(left: Tensor, right: Tensor) -> Tensor:
    """(B, D1), (B, D2) -> (B, B): the cosine kernel of the outer products of their rows, (B, D1 * D2), which are never made.

    The products of outer products are products of products; taking the mean of all outer products away is centring the
    table of them from both sides. So B^2 (D1 + D2) steps do what B^2 D1 D2 would.
    """
    products = (left @ left.T) * (right @ right.T)
    means = products.mean(0)
    table = products - means[None, :] - means[:, None] + means.mean()
    squares = table.diagonal()
    there = squares > 0
    norms = torch.where(there, torch.where(there, squares, 1).sqrt(), 0) + GUARD
    return table / (norms[:, None] * norms[None, :])


def apart(one: Tensor, other: Tensor) -> Tensor:
    """(B, B), (B, B) -> (): root mean square of the difference of two kernels, the diagonal included."""
    return ((one - other).square().mean() + GUARD).sqrt()
