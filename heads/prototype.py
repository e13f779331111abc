"""Prototypes: every class is the mean of its training rows, and a row is of the class whose mean is nearest.

    metric=euclid:  logits_c = t (2 x . m_c - |m_c|^2), which is -t |x - m_c|^2 up to a term that all classes share;
    metric=cosine:  logits_c = t cos(x, sum_{i in c} x_i / |x_i|).
The factor t makes logits of distances. It is the likeliest for rows that are each left out of the mean of their own class,
which costs one more pass and no fit: the mean without row i is (n m - x_i) / (n - 1).
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

PAPER = "Prototypical Networks for Few-shot Learning (2017)"
CONSUMES = "last"
LEARNING_RATE = 0.0

Metric = Literal["euclid", "cosine"]

TEMPERATURES = tuple(10.0 ** (k / 10) for k in range(-20, 31))
"""Tried factors t; those of squared distances are divided by the width, as these grow with it."""
ABSENT = -1e6
"""Logit of a class without a training row, which has no mean: it is never the answer."""


class Prototype(nn.Module):
    """Nearest class mean. Solved, never trained."""

    def __init__(self, spec: HeadSpec, metric: Metric) -> None:
        super().__init__()
        self.classes, self.metric = spec.num_classes, metric
        self.inputs = Inputs(spec)
        self.map = nn.Linear(self.inputs.width, spec.num_classes).requires_grad_(False)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, D) -> (B, C) logits."""
        logits: Tensor = self.map(self._features(arrays))
        return logits

    def _features(self, arrays: Mapping[str, Tensor]) -> Tensor:
        features = self.inputs.joined(arrays)
        return features if self.metric == "euclid" else F.normalize(features, dim=-1)

    def solve(self, batches: Iterable[FeatureBatch]) -> dict[str, float]:
        """Set the map from batches that are walked twice; returns the factor t, for the record."""
        counts = torch.zeros(self.classes, dtype=torch.float64)
        sums = torch.zeros(self.classes, self.inputs.width, dtype=torch.float64)
        for features, targets in self._columns(batches):
            counts += torch.bincount(targets, minlength=self.classes)
            sums.index_add_(0, targets, features)
        if not counts.any():
            raise ConfigError(["prototype needs training rows, got none"])
        unit = self._unit(sums, counts)
        losses = torch.zeros(len(TEMPERATURES), dtype=torch.float64)
        for features, targets in self._columns(batches):
            losses += self._losses(features, targets, sums, counts)
        factor = TEMPERATURES[int(losses.argmin())] / self._scale()
        with torch.no_grad():
            self.map.weight.copy_(factor * unit * (2 if self.metric == "euclid" else 1))
            bias = -factor * unit.square().sum(1) if self.metric == "euclid" else torch.zeros_like(counts)
            self.map.bias.copy_(torch.where(counts > 0, bias, ABSENT))
        return {"factor": factor}

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
        closeness = closeness[:, counts > 0][own > 1] / self._scale()  # a class of one row is gone without it
        places = (torch.cumsum(counts > 0, 0) - 1)[targets][own > 1]
        totals = [F.cross_entropy(t * closeness, places, reduction="sum") for t in TEMPERATURES]
        return torch.stack(totals)


def build(spec: HeadSpec, *, metric: Metric = "euclid") -> Prototype:
    """Return a nearest-mean head by squared distance or by angle.

    Raises:
        ConfigError: several labels or values a row have no one class whose mean they could make.
    """
    told = f"prototype cannot do {spec.task}: only classes have means. Give --head ridge, linear or knn"
    check((spec.task == "classification", told))
    return Prototype(spec, metric)
