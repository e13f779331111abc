"""What every distance between student and teachers shares: rows in full precision, parts for the history, values to train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from featurecache.features import FeatureBatch
from featurecache.sources.joined import teachers_of
from pipelines.objectives import Loss, Material

STUDENT = "embedding"
"""Name of the student's pooled vector among its outputs."""


class Distance(nn.Module):
    """How far a student's features are from those of its teachers; its parameters are what it learns itself."""

    def prepare(self, source: Material) -> None:
        """Look at nothing."""

    def measure(self, features: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """(B, d) features of the student, (B, D) rows of each teacher -> () distance."""
        raise NotImplementedError

    def of_rows(self, batch: FeatureBatch) -> list[Tensor]:
        """Return what the teachers say of the rows of a batch, (B, D) each."""
        return [in_full(rows) for rows in teachers_of(batch)]

    def metrics(self) -> dict[str, Tensor]:
        """Return what the history tells of the values that are learnt."""
        return {}

    def scales(self) -> list[Tensor]:
        """Return how much each dimension of each teacher counts, (D,) each; [] where all count alike."""
        return []

    def forward(self, outputs: Mapping[str, Tensor], batch: FeatureBatch) -> Loss:
        """Return the distance, unweighted; in float32 whatever the student's precision (float64 stays)."""
        features = in_full(outputs[STUDENT])
        with torch.autocast(features.device.type, enabled=False):
            distance = self.measure(features, self.of_rows(batch))
        return Loss(distance, {"distance": distance.detach(), **self.metrics()})


def in_full(values: Tensor) -> Tensor:
    """Return values in at least float32."""
    return values if values.dtype == torch.float64 else values.float()
