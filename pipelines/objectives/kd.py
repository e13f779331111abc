"""Knowledge distillation of features: a linear map of the student's features predicts those of all teachers, as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.objectives import Dimensions
from pipelines.objectives._distance import Distance

PAPER = "Heo et al., 2019, A Comprehensive Overhaul of Feature Distillation; as the baseline of AFT (arXiv:2406.07337)"
PAIRS, OWN_RATE = False, False


class Distillation(Distance):
    """Mean square error of a learnt affine map from the student to the teachers' features, joined."""

    def __init__(self, dimensions: Dimensions) -> None:
        super().__init__()
        self.map = nn.Linear(dimensions.student, sum(dimensions.teachers))

    def measure(self, features: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """(B, d), (B, D) each -> ()."""
        return F.mse_loss(self.map(features), torch.cat(list(teachers), dim=1))


def build(dimensions: Dimensions) -> Distillation:
    """Map the student's features onto the teachers'."""
    return Distillation(dimensions)
