"""Mean and standard deviation of features over rows, and the scale that a head divides by.

Dividing every feature by its own deviation makes features of next to no variance as loud as all others. With many rows a
head learns to ignore them; with few it cannot, and is better off with one scale for the whole array.
`shrink_deviations` goes from the one to the other as rows become many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from featurecache.features import FeatureBatch


def statistics_of(batches: Iterable[FeatureBatch]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return array -> (mean, standard deviation) over all rows, (D,) float32, summed in float64 around the first row."""
    origin: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        for name, values in batch.arrays.items():
            if name not in origin:
                origin[name] = values[:1].double()
                sums[name], squares[name] = torch.zeros_like(origin[name][0]), torch.zeros_like(origin[name][0])
            centred = values.double() - origin[name]
            sums[name] += centred.sum(0)
            squares[name] += centred.square().sum(0)
        count += len(batch)
    return {name: _moments(origin[name][0], sums[name], squares[name], count) for name in origin}


def shrink_deviations(statistics: Mapping[str, tuple[Tensor, Tensor]], rows: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Shrink the deviation of every feature towards the one of its array, the less the more rows a head is trained on.

        s_j = d_j^w * d^(1 - w),   w = N / (N + D),   d = sqrt(mean_j d_j^2)

    for N training rows and D features: one scale for an array where rows are few, the usual standardisation where N >> D.

    Args:
        statistics: array -> (mean, standard deviation), (D,) or (T, D) float32; 1 stands for a constant feature.
        rows: N, labelled rows that the head is trained on.
    """
    return {name: (mean, _shrink(deviation, rows)) for name, (mean, deviation) in statistics.items()}


def compute_target_statistics(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean, standard deviation) of (N, C) targets by column, float32; 1 for a column that is constant."""
    values = targets.double()
    mean, deviation = values.mean(0), values.std(0, correction=0)
    constant = deviation <= 1e-7 * mean.abs().clamp_min(1e-30)
    return mean.float(), torch.where(constant, torch.ones_like(deviation), deviation).float()


def _shrink(deviation: Tensor, rows: int) -> Tensor:
    weight = rows / (rows + deviation.shape[-1])
    values = deviation.double()
    return (values**weight * values.square().mean().sqrt() ** (1 - weight)).float()


def _moments(origin: Tensor, total: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor]:
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    scale = variance.sqrt()
    constant = scale <= 1e-7 * (origin + mean).abs().clamp_min(1e-30)
    return (origin + mean).float(), torch.where(constant, torch.ones_like(scale), scale).float()
