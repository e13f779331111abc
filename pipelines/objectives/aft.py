"""Adaptive feature transfer: the kernel of the student's features follows that of the teachers', their dimensions rescaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from featurecache.checks import check
from pipelines.objectives import Dimensions
from pipelines.objectives._distance import Distance
from pipelines.objectives._kernels import apart, cosine_kernel, product_kernel, rbf_kernel

PAPER = "Qiu et al., 2024, Transferring Knowledge from Large Foundation Models to Small Downstream Models (arXiv:2406.07337)"
PAIRS, OWN_RATE = True, True

Kernel = Literal["linear", "rbf", "dense", "product"]


class AdaptiveTransfer(Distance):
    """Root mean square difference of two centred kernels, cosine or RBF, over the pairs of a batch.

    Each dimension of the teachers is multiplied by sigmoid(s), learnt from s = 0; `dense` has a matrix instead, and
    `product` compares with the outer products of two teachers' rows.
    """

    def __init__(self, widths: Sequence[int], kernel: Kernel, learn_scales: bool) -> None:
        super().__init__()
        self.widths, self.kernel = tuple(widths), kernel
        total = sum(self.widths)
        start = torch.randn(total, total) / total**0.5 if kernel == "dense" else torch.zeros(total)
        self.s = nn.Parameter(start, requires_grad=learn_scales)

    def scaled(self, teachers: Sequence[Tensor]) -> list[Tensor]:
        """Return the teachers' rows as they are compared: rescaled blocks, (B, D) each, or one block through the matrix."""
        if self.kernel == "dense":
            return [torch.cat(list(teachers), dim=1) @ self.s]
        blocks = torch.split(self.s.sigmoid(), list(self.widths))
        return [rows * scale for rows, scale in zip(teachers, blocks, strict=True)]

    def kernels(self, features: Tensor, teachers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, d), (B, D) each -> the (B, B) kernels of student and teachers."""
        blocks = self.scaled(teachers)
        if self.kernel == "product":
            return cosine_kernel(features), product_kernel(*blocks)
        similar = rbf_kernel if self.kernel == "rbf" else cosine_kernel
        return similar(features), similar(torch.cat(blocks, dim=1))

    def measure(self, features: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """(B, d), (B, D) each -> ()."""
        return apart(*self.kernels(features, teachers))

    def metrics(self) -> dict[str, Tensor]:
        """Return mean and deviation of the scales; a matrix has none."""
        if self.kernel == "dense":
            return {}
        scale = self.s.detach().sigmoid()
        return {"scales_mean": scale.mean(), "scales_std": scale.std()}

    def scales(self) -> list[Tensor]:
        """Return sigmoid(s) of every teacher; of a matrix, the length of each of its rows."""
        values = self.s.detach().norm(dim=1) if self.kernel == "dense" else self.s.detach().sigmoid()
        return list(torch.split(values, list(self.widths)))


def build(dimensions: Dimensions, *, kernel: Kernel = "linear", learn_scales: bool = True) -> AdaptiveTransfer:
    """Compare kernels: linear (cosine), rbf, dense (a learnt matrix before the cosine), product (of two teachers).

    Raises:
        ConfigError: `product` without exactly two teachers.
    """
    count = len(dimensions.teachers)
    check((kernel != "product" or count == 2, f"kernel product multiplies two teachers, and there are {count}"))
    return AdaptiveTransfer(dimensions.teachers, kernel, learn_scales)
