"""The likelihood of the labels, and `prec` times a distance to the teachers: what a student minimises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from featurecache.checks import bind_options
from featurecache.features import FeatureBatch
from featurecache.sources import ParameterGroup
from pipelines.objectives import OBJECTIVES, Dimensions, Guidance, Loss, Material
from pipelines.objectives._distance import Distance


class Guided(nn.Module):
    """See `LearningObjective`."""

    def __init__(self, distance: Distance, guidance: Guidance, lr_factor: float) -> None:
        super().__init__()
        self.likelihood, self.distance = guidance.likelihood, distance
        self.prec, self.prior_freq, self.lr_factor = guidance.prec, guidance.prior_freq, lr_factor

    def prepare(self, source: Material) -> None:
        """Let the distance look at the rows once."""
        self.distance.prepare(source)

    def forward(self, outputs: Mapping[str, Tensor], batch: FeatureBatch) -> Loss:
        """Return the sum; its parts are the likelihood, the distance unweighted, and what the distance tells of itself."""
        labels, far = self.likelihood(outputs, batch), self.distance(outputs, batch)
        return Loss(labels.total + self.prec * far.total, {"likelihood": labels.total.detach(), **far.parts})

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the values of the distance, without decay."""
        values = {name: p for name, p in self.distance.named_parameters() if p.requires_grad}
        return [ParameterGroup(values, self.lr_factor, 0.0)] if values else []

    def detach_student(self, step: int) -> bool:
        """Return whether the student rests in this step of an epoch."""
        return step % self.prior_freq != 0


def built(name: str, dimensions: Dimensions, guidance: Guidance, options: Mapping[str, Any]) -> Guided:
    """Return the objective called `name`; its start is drawn from torch's global generator."""
    room = OBJECTIVES.load(name)
    distance: Distance = room.build(dimensions, **bind_options(room.build, options, f"objective {name}"))
    return Guided(distance, guidance, guidance.prior_factor if room.OWN_RATE else 1.0)
