"""Relational knowledge distillation: distances between rows and angles of triplets of rows are as the teachers' are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives import Dimensions
from pipelines.objectives._distance import Distance
from pipelines.objectives._triangles import angle_distance, lengths_of, products_of

PAPER = "Park et al., 2019, Relational Knowledge Distillation (arXiv:1904.05068)"
PAIRS, OWN_RATE = True, False


def relative(lengths: Tensor) -> Tensor:
    """(B, B) -> (B, B) in units of the mean of those that are not zero."""
    return lengths / lengths[lengths > 0].mean()


class Relational(Distance):
    """(distance loss + 2 angle loss) / 2, smooth L1 each."""

    def parts(self, features: Tensor, teachers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, d), (B, D) each -> () of the distances, () of the angles."""
        with torch.no_grad():
            far = products_of(torch.cat(list(teachers), dim=1))
            far_lengths = lengths_of(far)
        near = products_of(features)
        lengths, dtype = lengths_of(near), features.dtype
        apart = F.smooth_l1_loss(relative(lengths), relative(far_lengths))
        return apart.to(dtype), angle_distance(near, lengths, far, far_lengths, dtype).to(dtype)

    def measure(self, features: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """(B, d), (B, D) each -> ()."""
        far, wide = self.parts(features, teachers)
        return (far + 2 * wide) / 2


def build(dimensions: Dimensions) -> Relational:
    """Compare relations; nothing is learnt but the student. Time grows with the cube of the batch."""
    return Relational()
