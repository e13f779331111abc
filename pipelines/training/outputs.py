"""What heads say of all rows of a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from featurecache.features import FeatureBatch
from featurecache.sources import FeatureSource

EVALUATION_BATCH = 4096

Model = Callable[[Mapping[str, Tensor]], Tensor]
"""A head, or a stack of heads."""


def on_device(batch: FeatureBatch, device: str) -> FeatureBatch:
    """Return the batch with its tensors on `device`."""
    if device == "cpu":
        return batch
    arrays = {name: values.to(device, non_blocking=True) for name, values in batch.arrays.items()}
    return replace(batch, arrays=arrays, targets=batch.targets.to(device, non_blocking=True))


def outputs_of_all(
    models: Sequence[Model], source: FeatureSource, device: str, batch_size: int = EVALUATION_BATCH
) -> tuple[list[Tensor], Tensor]:
    """Return the (..., N, C) logits of every model over a source that is read once, and the (N, ...) targets, on the CPU."""
    whole: list[Tensor] = []
    targets: Any = None
    row = 0
    with torch.inference_mode():
        for batch in source.batches(batch_size):
            batch = on_device(batch, device)
            said = [model(batch.arrays).float().cpu() for model in models]
            if targets is None:
                whole = [one.new_empty(*one.shape[:-2], len(source), one.shape[-1]) for one in said]
                targets = batch.targets.cpu().new_empty(len(source), *batch.targets.shape[1:])
            for all_rows, one in zip(whole, said, strict=True):
                all_rows[..., row : row + len(batch), :] = one
            targets[row : row + len(batch)] = batch.targets.cpu()
            row += len(batch)
    return whole, targets


def outputs_of(model: Model, source: FeatureSource, device: str) -> tuple[Tensor, Tensor]:
    """Return (..., N, C) logits of a head or a stack over a source, with the (N, ...) targets, on the CPU."""
    (logits,), targets = outputs_of_all([model], source, device)
    return logits, targets
