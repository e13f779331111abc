"""Lengths and angles among the rows of a batch, all from their products, and how far the angles of two such batches are apart.

The angles of all triplets are (B, B, B) numbers. They are made for a few corners at a time, with what the gradient needs
of them, and let go: what a processor keeps near is quicker than what it has to fetch, and memory grows with B^2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.objectives._kernels import centred

HELD = 1 << 17
"""Angles that are made at a time on a processor; a hundred times as many on a GPU."""
SAME = 1e-14
"""Squared distance of two rows, of their squared lengths, below which they are one point: as near as float32 tells."""


def products_of(rows: Tensor) -> Tensor:
    """(B, D) -> (B, B) float64 products of the centred rows."""
    found = centred(rows.double())
    return found @ found.T


def lengths_of(products: Tensor) -> Tensor:
    """(B, B) products -> (B, B) Euclidean distances; exactly 0, and without gradient, where two rows are one point."""
    own = products.diagonal()
    both = own[:, None] + own
    squares = both - 2 * products
    apart = squares > SAME * both
    return torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0)


def angles(products: Tensor, lengths: Tensor) -> Tensor:
    """(B, B) products and lengths -> (B, B, B): entry (i, j, k) is the cosine at i of the triangle i, j, k.

    It is 0 where two of them are one point.
    """
    return _Corners(products, lengths, products.dtype).angles(slice(None))


def angle_distance(products: Tensor, lengths: Tensor, far: Tensor, far_lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, B) each, of the student and of its teachers -> () mean smooth L1 distance of their angles.

    Its gradient reaches the student's. Angles are of the given type.
    """
    found: Tensor = _Angles.apply(products, lengths, far, far_lengths, dtype)
    return found


class _Corners:
    """What angles are made of: with u one over a length, that at i is u_ij u_ik (g_jk - h_ij - h_ik), h_ij = g_ij - g_ii / 2."""

    def __init__(self, products: Tensor, lengths: Tensor, dtype: torch.dtype) -> None:
        there = lengths > 0
        inverse = torch.where(there, 1 / torch.where(there, lengths, 1), 0)
        half = inverse * (products - products.diagonal()[:, None] / 2)
        self.products, self.inverse = products.to(dtype), inverse.to(dtype)
        self.left = torch.stack([inverse, half], dim=2).to(dtype)
        self.right = torch.stack([half, inverse], dim=1).to(dtype)

    def angles(self, corners: slice) -> Tensor:
        """Return (c, B, B) of c corners."""
        near = self.inverse[corners]
        found = (near[:, :, None] * self.products).mul_(near[:, None, :])
        return found.baddbmm_(self.left[corners], self.right[corners], alpha=-1)


class _Angles(torch.autograd.Function):
    """The distance, and while its triplets are there their gradient.

    With e the slope of a triplet's loss, c = e u_ij u_ik is that of the product j k; by symmetry every other one has two
    such shares.
    """

    @staticmethod
    def forward(
        ctx: Any, products: Tensor, lengths: Tensor, far: Tensor, far_lengths: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Return the mean over all triplets."""
        student, teachers = _Corners(products, lengths, dtype), _Corners(far, far_lengths, dtype)
        count, total = len(products), products.new_zeros(())
        to_products, to_lengths = torch.zeros_like(student.products), torch.zeros_like(student.products)
        held = max(1, (HELD if products.device.type == "cpu" else 100 * HELD) // count**2)
        for start in range(0, count, held):
            corners = slice(start, min(start + held, count))
            near, found = student.inverse[corners], student.angles(corners)
            apart = teachers.angles(corners).neg_().add_(found)
            slopes = apart.clamp(-1, 1)  # the loss is slope * (apart - slope / 2)
            total += torch.dot(slopes.flatten(), apart.flatten()) - slopes.norm().square() / 2
            sides = near * (slopes @ near[:, :, None])[:, :, 0]
            to_lengths[corners] = -2 * near * found.mul_(slopes).sum(2)
            to_products += slopes.mul_(near[:, :, None]).mul_(near[:, None, :]).sum(0)
            to_products[corners] -= 2 * sides
            to_products.diagonal()[corners] += sides.sum(1)
        ctx.save_for_backward(to_products, to_lengths)
        ctx.count = count
        return total / count**3

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Return the gradients of the student's products and lengths."""
        to_products, to_lengths = ctx.saved_tensors
        scale = slopes[0] / ctx.count**3
        return to_products * scale, to_lengths * scale, None, None, None
