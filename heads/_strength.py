"""What a penalty is chosen by: folds of the training rows, and the losses of several affine maps on rows they have not seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads._inputs import Inputs

FOLDS = 5
"""As many as scikit-learn takes by default."""

Fold = tuple[list[FeatureBatch], list[FeatureBatch]]
"""Rows to fit to, and the rows that are left out."""


def split_folds(batches: Iterable[FeatureBatch], spec: HeadSpec) -> list[Fold] | None:
    """Divide rows into at most `FOLDS` folds, each class spread over all of them; the same whatever the batches.

    Returns None where a class has one row, or there is one row in all: without it, nothing is known of its class.
    """
    kept = list(batches)
    targets = torch.cat([batch.targets for batch in kept])
    if spec.task == "classification":
        counts = torch.bincount(targets, minlength=1)
        folds = min(FOLDS, int(counts[counts > 0].min()))
        number = _number_within_classes(targets.numpy()) % max(1, folds)
    else:
        folds = min(FOLDS, len(targets))
        number = np.arange(len(targets)) % max(1, folds)
    if folds < 2 or not _all_learnable(targets, number, folds, spec):
        return None
    return [(_select(kept, number != fold), _select(kept, number == fold)) for fold in range(folds)]


def _number_within_classes(targets: np.ndarray) -> np.ndarray:
    """(N,) classes -> (N,) how many rows of its own class stand before each row."""
    order = np.argsort(targets, kind="stable")
    starts = np.searchsorted(targets[order], targets[order], side="left")
    numbers = np.empty(len(targets), dtype=np.int64)
    numbers[order] = np.arange(len(targets)) - starts
    return numbers


def _all_learnable(targets: Tensor, number: np.ndarray, folds: int, spec: HeadSpec) -> bool:
    """Return whether some label differs among the rows that remain without each fold."""
    if spec.task == "classification":
        return True
    rest = [targets[torch.from_numpy(number != fold)] for fold in range(folds)]
    return all(bool((rows != rows[0]).any()) for rows in rest)


def _select(batches: Sequence[FeatureBatch], which: np.ndarray) -> list[FeatureBatch]:
    found, start = [], 0
    for batch in batches:
        places = np.flatnonzero(which[start : start + len(batch)])
        start += len(batch)
        if len(places):
            index = torch.from_numpy(places)
            arrays = {name: values.index_select(0, index) for name, values in batch.arrays.items()}
            ids = [batch.sample_ids[place] for place in places] if len(batch.sample_ids) else ()
            found.append(FeatureBatch(batch.rows[places], ids, batch.targets.index_select(0, index), arrays))
    return found


@torch.no_grad()
def compute_losses(
    maps: Sequence[tuple[Tensor, Tensor]], inputs: Inputs, batches: Iterable[FeatureBatch], spec: HeadSpec
) -> tuple[Tensor, int]:
    """Return the summed cross-entropy of S affine maps, (S,) float64, and the number of rows.

    Args:
        maps: S pairs of a (C, D) weight and a (C,) bias.
        inputs: makes the (B, D) features of a batch.
        batches: rows with targets.
        spec: says whether a row has one class or several labels.
    """
    weight = torch.cat([one for one, _ in maps]).float()
    bias = torch.cat([one for _, one in maps]).float()
    total, count = torch.zeros(len(maps), dtype=torch.float64), 0
    for batch in batches:
        logits = F.linear(inputs.joined(batch.arrays), weight, bias).double().unflatten(-1, (len(maps), -1))
        total += _sum_losses(logits, batch.targets, spec)
        count += len(batch)
    return total, count


def _sum_losses(logits: Tensor, targets: Tensor, spec: HeadSpec) -> Tensor:
    """(B, S, C) logits -> (S,) losses summed over the rows."""
    if spec.task == "classification":
        own = targets[:, None, None].expand(-1, logits.shape[1], 1)
        return (logits.logsumexp(-1) - logits.gather(-1, own)[..., 0]).sum(0)
    labels = targets[:, None].double().expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum((0, 2))
