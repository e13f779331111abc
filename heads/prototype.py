"""Prototypes: every class is the mean of its training rows, and a row is of the class whose mean is nearest.

    metric=cosine:  logits_c = t cos(x, sum_{i in c} x_i / |x_i|);
    metric=euclid:  logits_c = t (2 x . m_c - |m_c|^2), which is -t |x - m_c|^2 up to a term that all classes share.
Features are first whitened by what rows of one class have in common (`heads/_within_class.py`), as far as leave-one-out says
that this helps; whiten=false gives the plain class means of the paper.
The factor t makes logits of distances. It is the likeliest for validation rows, or, where there are none, for rows that are each
left out of the mean of their own class: that without row i is (n m - x_i) / (n - 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import ConfigError
from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads._inputs import Inputs
from heads._within_class import WithinClassMetric

PAPER = "Prototypical Networks for Few-shot Learning (2017)"
CONSUMES = "last"
LEARNING_RATE = 0.0
FORMER = {"metric": "euclid", "whiten": False}
"""Defaults of heads that were saved without theirs."""
FITTED = "means of the classes"

Metric = Literal["euclid", "cosine"]

TEMPERATURES = tuple(10.0 ** (k / 10) for k in range(-20, 31))
"""Tried factors t; those of squared distances are divided by the width, as these grow with it."""
ABSENT = -1e6
"""Logit of a class without a training row, which has no mean: it is never the answer."""


class Prototype(nn.Module):
    """Nearest class mean. Solved, never trained."""

    def __init__(self, spec: HeadSpec, metric: Metric, whiten: bool) -> None:
        super().__init__()
        self.classes, self.metric, self.whiten = spec.num_classes, metric, whiten
        self.inputs = Inputs(spec)
        self.within = WithinClassMetric(self.inputs.width)
        self.map = nn.Linear(self.inputs.width, spec.num_classes).requires_grad_(False)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, D) -> (B, C) logits."""
        logits: Tensor = self.map(self._features(arrays))
        return logits

    def _features(self, arrays: Mapping[str, Tensor]) -> Tensor:
        features: Tensor = self.within(self.inputs.joined(arrays))
        return features if self.metric == "euclid" else F.normalize(features, dim=-1)

    def solve(
        self, batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
    ) -> dict[str, float]:
        """Set the map from batches that are walked four times; returns s and the factor t, for the record."""
        chosen = self.within.solve(self.inputs, batches, self.classes) if self.whiten else {}
        counts = torch.zeros(self.classes, dtype=torch.float64)
        sums = torch.zeros(self.classes, self.inputs.width, dtype=torch.float64)
        for features, targets in self._columns(batches):
            counts += torch.bincount(targets, minlength=self.classes)
            sums.index_add_(0, targets, features)
        if not counts.any():
            raise ConfigError(["prototype needs training rows, got none"])
        unit = self._unit(sums, counts)
        losses = torch.zeros(len(TEMPERATURES), dtype=torch.float64)
        for features, targets in self._columns(batches if validation is None else validation):
            if validation is None:
                losses += self._losses(features, targets, sums, counts)
            else:
                losses += self._seen_losses(features, targets, unit, counts)
        factor = TEMPERATURES[int(losses.argmin())] / self._scale()
        with torch.no_grad():
            self.map.weight.copy_(factor * unit * (2 if self.metric == "euclid" else 1))
            bias = -factor * unit.square().sum(1) if self.metric == "euclid" else torch.zeros_like(counts)
            self.map.bias.copy_(torch.where(counts > 0, bias, ABSENT))
        return {**chosen, "factor": factor}

    def _columns(self, batches: Iterable[FeatureBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            yield self._features(batch.arrays).double(), batch.targets

    def _scale(self) -> int:
        return self.inputs.width if self.metric == "euclid" else 1

    def _unit(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Return (C, D) means, or directions of the sums; zeros for a class without rows."""
        if self.metric == "cosine":
            return F.normalize(sums, dim=1)
        return sums / counts.clamp_min(1)[:, None]

    def _losses(self, features: Tensor, targets: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """Return the summed cross-entropy of every factor, each row left out of the mean of its own class."""
        unit = self._unit(sums, counts)
        rows, own = torch.arange(len(targets)), counts[targets]
        left = sums[targets] - features
        if self.metric == "euclid":
            closeness = 2 * features @ unit.T - unit.square().sum(1)
            left = left / (own - 1).clamp_min(1)[:, None]
            closeness[rows, targets] = 2 * (features * left).sum(1) - left.square().sum(1)
        else:
            closeness = features @ unit.T
            closeness[rows, targets] = (features * F.normalize(left, dim=1)).sum(1)
        return self._sum_losses(closeness, targets, own > 1, counts)  # a class of one row is gone without it

    def _seen_losses(self, features: Tensor, targets: Tensor, unit: Tensor, counts: Tensor) -> Tensor:
        """Return the same of rows that no mean was made of; those of classes without a mean say nothing of a factor."""
        closeness = features @ unit.T
        if self.metric == "euclid":
            closeness = 2 * closeness - unit.square().sum(1)
        return self._sum_losses(closeness, targets, counts[targets] > 0, counts)

    def _sum_losses(self, closeness: Tensor, targets: Tensor, which: Tensor, counts: Tensor) -> Tensor:
        closeness = closeness[:, counts > 0][which] / self._scale()
        places = (torch.cumsum(counts > 0, 0) - 1)[targets][which]
        return torch.stack([F.cross_entropy(t * closeness, places, reduction="sum") for t in TEMPERATURES])


def build(spec: HeadSpec, *, metric: Metric = "cosine", whiten: bool = True) -> Prototype:
    """Return a nearest-mean head by angle or by squared distance.

    Args:
        spec: what it reads and says.
        metric: "cosine", which no length of a row disturbs, or "euclid".
        whiten: by the covariance within classes, as far as leave-one-out says; False: features as they are.

    Raises:
        ConfigError: several labels or values a row have no one class whose mean they could make.
    """
    told = f"prototype cannot do {spec.task}: only classes have means. Give --head ridge, linear or knn"
    check((spec.task == "classification", told))
    return Prototype(spec, metric, whiten)
