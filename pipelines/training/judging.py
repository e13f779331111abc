"""Where candidates stand on validation: what `metrics.score` says of them, for all heads of a stack at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featurecache.features import FeatureBatch, Task
from featurecache.metrics import score
from featurecache.sources import FeatureSource
from pipelines.training.outputs import Model, on_device, outputs_of_all

Standing = tuple[float, ...]
"""(primary metric, minus the mean loss), higher is better; () where there is nothing to judge by."""


def judged(
    models: Sequence[Model],
    sizes: Sequence[int],
    source: FeatureSource | None,
    task: Task,
    device: str,
    batch_size: int,
) -> list[list[Standing]]:
    """Return the standing of every head of every stack of `sizes` heads, from one read of the source.

    Accuracy and loss are summed as the rows pass; other tasks' metrics need all of the logits.
    """
    if source is None or not len(source):
        return [[()] * size for size in sizes]
    if task != "classification":
        found, targets = outputs_of_all(models, source, device, batch_size)
        return [[score(one.numpy(), np.asarray(targets), task) for one in logits] for logits in found]
    sums = [torch.zeros(2, size, dtype=torch.float64) for size in sizes]
    with torch.inference_mode():
        for batch in source.batches(batch_size):
            batch = on_device(batch, device)
            for total, model in zip(sums, models, strict=True):
                total += _sums(model(batch.arrays).float(), batch)
    return [[_standing(*one) for one in (total / len(source)).T.tolist()] for total in sums]


def _sums(logits: Tensor, batch: FeatureBatch) -> Tensor:
    """(M, B, C) logits -> (2, M): rows that are right, and the sum of their losses; NaN where a logit is no number."""
    right = (logits.argmax(-1) == batch.targets).double().sum(-1)
    losses = F.cross_entropy(
        logits.double().movedim(-1, 1), batch.targets.expand(len(logits), -1), reduction="none"
    ).sum(-1)
    finite = torch.isfinite(logits).all(-1).all(-1)
    return torch.stack([right, losses]).where(finite, math.nan).cpu()


def _standing(accuracy: float, loss: float) -> Standing:
    return accuracy, -loss
