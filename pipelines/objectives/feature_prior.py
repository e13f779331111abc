"""Feature prior: a learnt linear map of the teachers' features predicts the student's, both centred; AFT without kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.objectives import Dimensions
from pipelines.objectives._distance import Distance
from pipelines.objectives._kernels import centred

PAPER = "Qiu et al., 2024, ablation of AFT (arXiv:2406.07337)"
PAIRS, OWN_RATE = True, True


class FeaturePrior(Distance):
    """Mean square error between centred features."""

    def __init__(self, dimensions: Dimensions) -> None:
        super().__init__()
        self.widths = dimensions.teachers
        self.map = nn.Linear(sum(dimensions.teachers), dimensions.student)

    def measure(self, features: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """(B, d), (B, D) each -> ()."""
        return F.mse_loss(centred(features), centred(self.map(torch.cat(list(teachers), dim=1))))

    def scales(self) -> list[Tensor]:
        """Return the length of what the map makes of each dimension of each teacher."""
        return list(self.map.weight.detach().norm(dim=0).split(list(self.widths)))


def build(dimensions: Dimensions) -> FeaturePrior:
    """Map the teachers' features onto the student's."""
    return FeaturePrior(dimensions)
