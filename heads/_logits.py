"""The losses of many logistic regressions over one walk of the features, with their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from featurecache.errors import ConfigError
from featurecache.features import FeatureBatch, Task
from heads import HeadSpec
from heads._inputs import Inputs

KEPT_BYTES = 1 << 30
"""Standardised features up to this size stay in memory between walks; of more, each walk reads the batches again."""
BLOCK = 1024
"""Rows whose logits are held at a time."""
DIRECTIONS = 1024
"""Of the Gram matrix that are known one by one; the others of wider features count as equal."""
ABSENT = -1e6
"""Logit of a class without a training row: it is never the answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What is solved for: K columns, of which the C outputs are made."""

    softmax: bool
    """One label among K, or K labels that are each there or not."""
    places: Tensor
    """(K,) class or label of each column; of two classes, the second."""
    spread: Tensor
    """(K, C) float64: what the outputs make of the columns."""
    constant: Tensor
    """(C,) float64: what the outputs add; it decides where no column does."""

    @classmethod
    def of(cls, counts: Tensor, rows: int, task: Task) -> Columns:
        """Return the columns for (C,) rows of each class, or with each label.

        Raises:
            ConfigError: there is nothing to tell apart.
        """
        known = counts > 0 if task == "classification" else (counts > 0) & (counts < rows)
        places, spread = known.nonzero()[:, 0], torch.eye(len(counts), dtype=torch.float64)[known]
        if len(places) < (2 if task == "classification" else 1):
            raise ConfigError([f"logistic needs rows that differ; all {rows} training rows have the same label"])
        if task == "multilabel":  # a label that is always there, or never, is said with the odds of N + 1/2 rows to 1/2
            odds = math.log(2 * rows + 1)
            always = torch.where(counts == rows, odds, -odds).double()
            return cls(False, places, spread, torch.where(known, 0.0, always))
        absent = torch.where(known, 0.0, ABSENT).double()
        if len(places) == 2:  # one column, as in scikit-learn: two with half the weight each would be penalised less
            return cls(False, places[1:], (spread[1:] - spread[:1]) / 2, absent)
        return cls(True, places, spread, absent)

    @property
    def count(self) -> int:
        """K."""
        return len(self.places)

    @property
    def variance(self) -> float:
        """Of a column's label at W = 0, which the Gram matrix is multiplied by in the Hessian there."""
        return 1 / self.count if self.softmax else 0.25

    def labels(self, targets: Tensor) -> Tensor:
        """(B,) classes or (B, C) labels -> (B,) columns for softmax, else (B, K) zeros and ones."""
        if self.softmax:
            return torch.searchsorted(self.places, targets)
        return targets[:, self.places] if targets.ndim == 2 else (targets[:, None] == self.places).to(torch.uint8)


class Passes:
    """Walks over features and labels; what a walk needs of the features as a whole is found in the first."""

    def __init__(self, inputs: Inputs, batches: Iterable[FeatureBatch], spec: HeadSpec) -> None:
        self.inputs, self.batches, self.spec, self.width = inputs, batches, spec, inputs.width
        self.kept: list[tuple[Tensor, Tensor]] | None = []
        self.mean = self._first()
        if self.kept is not None:
            self.kept = [(x - self.mean.float(), self.columns.labels(y)) for x, y in self.kept]
        self.eigenvalues, self.directions, self.rest = self._spectrum()

    def _first(self) -> Tensor:
        """Count, sum, and keep what fits; return the (D,) mean."""
        total = torch.zeros(self.width, dtype=torch.float64)
        counts, self.rows = torch.zeros(self.spec.num_classes, dtype=torch.int64), 0
        for batch in self.batches:
            x, y = self.inputs.joined(batch.arrays), batch.targets
            self.rows += len(x)
            total += x.sum(0, dtype=torch.float64)
            counts += torch.bincount(y, minlength=len(counts)) if y.ndim == 1 else y.ne(0).sum(0)
            if self.kept is not None:
                self.kept.append((x, y))
                if self.rows * self.width * 4 > KEPT_BYTES:
                    self.kept = None
        self.columns = Columns.of(counts, self.rows, self.spec.task)
        return total / max(1, self.rows)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (B, D) centred features, float32, and their labels, at most `BLOCK` rows at a time."""
        for x, y in self._read() if self.kept is None else self.kept:
            yield from zip(torch.split(x, BLOCK), torch.split(y, BLOCK), strict=True)

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            yield self.inputs.joined(batch.arrays) - self.mean.float(), self.columns.labels(batch.targets)

    def _spectrum(self) -> tuple[Tensor, Tensor, float]:
        """Return the largest eigenvalues (R,) of the Gram matrix, their directions (D, R), and the mean of the others.

        They only shape the steps, so float32 will do, and of very wide features a few rounds of subspace iteration.
        """
        gram = torch.zeros(self.width, self.width)
        for x, _ in self.blocks():
            gram.addmm_(x.T, x)
        if self.width <= DIRECTIONS:
            values, directions = torch.linalg.eigh(gram.double())
            return values.clamp_min(0), directions, 0.0
        draw = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(gram @ torch.randn(self.width, DIRECTIONS // 2, generator=draw))[0]
        for _ in range(2):
            basis = torch.linalg.qr(gram @ basis)[0]
        values, inner = torch.linalg.eigh((basis.T @ gram @ basis).double())
        values = values.clamp_min(0)
        others = (float(gram.trace()) - float(values.sum())) / (self.width - len(values))
        return values, basis.double() @ inner, max(0.0, others)

    def losses(self, weight: Tensor, bias: Tensor, *, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return (A,) summed losses of A problems, and their slopes by weight (A, D, K) and intercept (A, K), float64.

        The products and logits are float64 where `exact`, else float32; sums over the rows are float64.
        """
        kind = torch.float64 if exact else torch.float32
        many, width, columns = weight.shape
        flat, shift = weight.permute(1, 0, 2).reshape(width, -1).to(kind), bias.to(kind)
        losses = torch.zeros(many, dtype=torch.float64)
        by_bias = torch.zeros(many, columns, dtype=torch.float64)
        by_weight = torch.zeros_like(flat)
        for x, y in self.blocks():
            x = x.to(kind)
            logits = (x @ flat).reshape(len(x), many, columns).add_(shift)
            losses += _softmax(logits, y) if self.columns.softmax else _sigmoid(logits, y)
            by_bias += logits.sum(0, dtype=torch.float64)
            by_weight.addmm_(x.T, logits.flatten(1))
        return losses, by_weight.reshape(width, many, columns).permute(1, 0, 2).double(), by_bias


def _softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (A,) losses of (B, A, K) logits, which become their slopes in place."""
    logits -= logits.amax(-1, keepdim=True)
    at = labels[:, None, None].expand(*logits.shape[:2], 1)
    own = logits.gather(-1, at)
    total = logits.exp_().sum(-1, keepdim=True)
    losses = (total.log() - own).sum((0, 2), dtype=torch.float64)
    logits /= total
    logits.scatter_add_(-1, at, torch.full_like(own, -1.0))
    return losses


def _sigmoid(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (A,) losses of (B, A, K) logits, which become their slopes in place."""
    there = labels[:, None].to(logits.dtype)
    losses = (F.softplus(logits) - there * logits).sum((0, 2), dtype=torch.float64)
    logits.sigmoid_().sub_(there)
    return losses
