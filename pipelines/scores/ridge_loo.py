"""Ridge with leave-one-out: share of the labels' variance that ridge regression explains on rows left out; higher is better.

    1 - (leave-one-out mean squared error) / (variance of the label columns), lambda chosen by the same error

Labels are the 0/1 columns of their classes; the columns of a regression are first scaled to unit variance.
It is the head `ridge` before any validation row is seen: exact, at most one, and at or below zero where features say nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads.ridge import build
from pipelines.scores._rows import Floats, Rows

CONSUMES = "features"
TASKS = ("classification", "multilabel", "regression")
PAPER = "Allen, Technometrics 1974"


def score(rows: Rows) -> float:
    """Return the leave-one-out R2 over all columns together of features (N, D); three passes, memory D^2."""
    mean, variance = rows.spread.mean, np.diag(rows.spread.covariance)
    deviation = np.sqrt(np.maximum(variance, 0))
    constant = deviation <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
    statistics = torch.from_numpy(mean), torch.from_numpy(np.where(constant, 1.0, deviation))
    # a regression, so that no temperature of classification logits is sought
    spec = HeadSpec(
        shapes={"features": (rows.width,)},
        num_classes=rows.num_targets,
        task="regression",
        statistics={"features": statistics},
    )
    error = build(spec).solve(_Batches(rows))["leave_one_out_error"]
    return 1 - error / float(_column_variances(rows).mean())


@dataclass(frozen=True, slots=True, eq=False)
class _Batches:
    """The rows as batches of float64 features and label columns (B, K), which can be walked more than once."""

    rows: Rows

    def __iter__(self) -> Iterator[FeatureBatch]:
        unit = _units(self.rows)
        for values, targets in self.rows.pieces():
            columns = np.eye(self.rows.num_targets)[targets] if targets.ndim == 1 else targets / unit
            yield FeatureBatch(
                np.arange(len(values)), (), torch.from_numpy(columns), {"features": torch.from_numpy(values)}
            )


def _units(rows: Rows) -> Floats:
    """Return (K,) what the columns are divided by."""
    deviation = rows.targets.std(axis=0, dtype=np.float64)
    return np.where(deviation > 0, deviation, 1.0) if rows.task == "regression" else np.ones_like(deviation)


def _column_variances(rows: Rows) -> Floats:
    """Return (K,) variances of the columns as they are regressed on."""
    if rows.task == "classification":
        shares = np.bincount(rows.targets, minlength=rows.num_targets) / len(rows)
        return np.asarray(shares * (1 - shares))
    return np.asarray((rows.targets / _units(rows)).var(axis=0, dtype=np.float64))
