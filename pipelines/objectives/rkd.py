"""Relational knowledge distillation: distances between rows and angles of triplets of rows are as the teachers' are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives import Dimensions
from pipelines.objectives._distance import Distance

PAPER = "Park et al., 2019, Relational Knowledge Distillation (arXiv:1904.05068)"
PAIRS, OWN_RATE = True, False


def lengths_of(rows: Tensor) -> Tensor:
    """(B, D) -> (B, B) Euclidean distances, from the differences: products would lose those of rows that are near."""
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def relative(lengths: Tensor) -> Tensor:
    """(B, B) -> (B, B) in units of the mean of those that are not zero."""
    return lengths / lengths[lengths > 0].mean()


def angles(rows: Tensor, lengths: Tensor) -> Tensor:
    """(B, D), (B, B) -> (B, B, B): entry (i, j, k) is the cosine at i of the triangle i, j, k; 0 where two of them are one point.

    From the products of the rows, so that no difference of D numbers is held for every pair.
    """
    rows = rows - rows.mean(0)
    products = rows @ rows.T
    corners = products - products[:, :, None] - (products - products.diagonal()[:, None])[:, None, :]
    there = lengths > 1e-12
    inverse = torch.where(there, 1 / torch.where(there, lengths, 1), 0)
    return corners * (inverse[:, :, None] * inverse[:, None, :])


class Relational(Distance):
    """(distance loss + 2 angle loss) / 2, smooth L1 each."""

    def parts(self, features: Tensor, teachers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, d), (B, D) each -> () of the distances, () of the angles."""
        rows = torch.cat(list(teachers), dim=1)
        with torch.no_grad():
            lengths = lengths_of(rows)
            far, wide = relative(lengths), angles(rows, lengths)
        lengths = lengths_of(features)
        return F.smooth_l1_loss(relative(lengths), far), F.smooth_l1_loss(angles(features, lengths), wide)

    def measure(self, features: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """(B, d), (B, D) each -> ()."""
        far, wide = self.parts(features, teachers)
        return (far + 2 * wide) / 2


def build(dimensions: Dimensions) -> Relational:
    """Compare relations; nothing is learnt but the student. Memory grows with the cube of the batch."""
    return Relational()
