"""Mean and deviation of features over rows, whichever source they come from."""

from __future__ import annotations

from collections.abc import Iterable

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


def _moments(origin: Tensor, total: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor]:
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    scale = variance.sqrt()
    constant = scale <= 1e-7 * (origin + mean).abs().clamp_min(1e-30)
    return (origin + mean).float(), torch.where(constant, torch.ones_like(scale), scale).float()
