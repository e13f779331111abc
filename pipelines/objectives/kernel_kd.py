"""Distillation of kernels: that of a learnt linear map of the student's features follows the teachers', unscaled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.objectives import Dimensions
from pipelines.objectives._distance import Distance
from pipelines.objectives._kernels import apart, cosine_kernel

PAPER = "Qiu et al., 2024, ablation of AFT (arXiv:2406.07337)"
PAIRS, OWN_RATE = True, True


class KernelDistillation(Distance):
    """Root mean square difference of the centred cosine kernels."""

    def __init__(self, dimensions: Dimensions) -> None:
        super().__init__()
        self.map = nn.Linear(dimensions.student, dimensions.student)

    def measure(self, features: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """(B, d), (B, D) each -> ()."""
        return apart(cosine_kernel(self.map(features)), cosine_kernel(torch.cat(list(teachers), dim=1)))


def build(dimensions: Dimensions) -> KernelDistillation:
    """Map the student's features before their kernel is taken."""
    return KernelDistillation(dimensions)
