"""The losses of many logistic regressions over one walk of the features, with their gradients and Hessians."""

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
"""Standardised features up to this size stay in memory; of more, each walk reads the batches again."""
BLOCK = 4096
"""Rows whose logits are held at a time."""
LEAST = 1e-15
"""Chances below it are none: processors are slow at numbers next to zero."""
TAIL, MANY = 1e-3, 0.25
"""Share of the weight in the Hessian that may be left out for speed, where it is that share of the rows or more."""
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

    def labels(self, targets: Tensor) -> Tensor:
        """(B,) classes or (B, C) labels -> (B,) columns for softmax, else (B, K) zeros and ones."""
        if self.softmax:
            return torch.searchsorted(self.places, targets)
        return targets[:, self.places] if targets.ndim == 2 else (targets[:, None] == self.places).to(torch.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What the rows say at some points."""

    points: Tensor
    """(A, K, D + 1)."""
    parts: list[Tensor]
    """(B, A, K) of each block of rows; none where not all rows are kept."""

    def places(self, points: Tensor) -> list[int] | None:
        """Return where each of the points is among these; None where one is not."""
        found = [next((n for n, known in enumerate(self.points) if torch.equal(known, point)), -1) for point in points]
        return None if not self.parts or -1 in found else found


class Passes:
    """Walks over features, centred and with a column of ones behind them, and labels; W and b are one (K, D + 1) then."""

    def __init__(self, inputs: Inputs, batches: Iterable[FeatureBatch], spec: HeadSpec) -> None:
        self.inputs, self.batches, self.spec, self.width = inputs, batches, spec, inputs.width
        self.stride = 1
        """Every so many rows are kept in memory: of features beyond `KEPT_BYTES` enough to know the Hessian by."""
        self.mean, kept = self._first()
        self.kept = [self._columns(x, y) for x, y in kept]
        self.last = Said(torch.empty(0), [])

    def _first(self) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Count, sum, and keep what fits; return the (D,) mean and what is kept."""
        total, kept = torch.zeros(self.width, dtype=torch.float64), []
        counts, self.rows = torch.zeros(self.spec.num_classes, dtype=torch.int64), 0
        for batch in self.batches:
            x, y = self.inputs.joined(batch.arrays), batch.targets
            some = slice(-self.rows % self.stride, None, self.stride)
            kept.append((x, y) if self.stride == 1 else (x[some].clone(), y[some].clone()))
            self.rows += len(x)
            total += x.sum(0, dtype=torch.float64)
            counts += torch.bincount(y, minlength=len(counts)) if y.ndim == 1 else y.ne(0).sum(0)
            while self.rows // self.stride * self.width * 4 > KEPT_BYTES:
                self.stride *= 2
                kept = _every_second(kept)
        self.columns = Columns.of(counts, self.rows, self.spec.task)
        return total / max(1, self.rows), kept

    def _columns(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return F.pad(x - self.mean.float(), (0, 1), value=1.0), self.columns.labels(y)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (B, D + 1) float32 and labels of every row, at most `BLOCK` rows at a time."""
        read = (self._columns(self.inputs.joined(batch.arrays), batch.targets) for batch in self.batches)
        for x, y in self.kept if self.stride == 1 else read:
            yield from zip(torch.split(x, BLOCK), torch.split(y, BLOCK), strict=True)

    def losses(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(A, K, D + 1) -> (A,) summed losses of A problems and their gradients (A, K, D + 1), float64.

        Products and logits are float32, sums over the rows float64.
        """
        flat, said = points.flatten(0, 1).float().T.contiguous(), []
        losses, slopes = torch.zeros(len(points), dtype=torch.float64), torch.zeros_like(points).flatten(0, 1)
        for x, y in self.blocks():
            logits = (x @ flat).reshape(len(x), *points.shape[:2])
            losses += _softmax(logits, y) if self.columns.softmax else _sigmoid(logits, y)
            slopes += logits.flatten(1).T @ x
            if self.stride == 1:
                said.append(self._bent(logits, y))
        self.last = Said(points.clone(), said)
        return losses, slopes.reshape(points.shape)

    def _bent(self, slopes: Tensor, labels: Tensor) -> Tensor:
        """Return what `Curvature` knows a row by, (B, A, K), made of the slopes of its logits in place."""
        if self.columns.softmax:
            return slopes.scatter_add_(-1, _own(slopes, labels), slopes.new_ones(1).expand(*slopes.shape[:2], 1))
        return slopes.abs_().mul_(1 - slopes)

    def said(self, points: Tensor) -> list[Tensor]:
        """(A, K, D + 1) -> (B, A, K) of the kept rows: chances, or of columns of their own p (1 - p).

        Nearly always these are points of which the losses were told last; then nothing is computed.
        """
        places = self.last.places(points)
        if places is not None:
            return [part if places == list(range(part.shape[1])) else part[:, places] for part in self.last.parts]
        flat, found = points.flatten(0, 1).float().T.contiguous(), []
        for kept, _ in self.kept:
            for x in torch.split(kept, BLOCK):
                logits = (x @ flat).reshape(len(x), *points.shape[:2])
                said = logits.softmax(-1) if self.columns.softmax else logits.sigmoid() * (-logits).sigmoid()
                found.append(F.threshold(said, LEAST, 0.0))
        return found


class Curvature:
    """Hessians of the summed losses at the points of A problems, from the rows that are kept."""

    def __init__(self, passes: Passes, points: Tensor) -> None:
        """Remember what every row says at (A, K, D + 1) points."""
        self.softmax, self.factor, self.width = passes.columns.softmax, passes.stride, points.shape[2]
        blocks = [
            pair
            for x, y in passes.kept
            for pair in zip(torch.split(x, BLOCK), torch.split(y, BLOCK), strict=True)
        ]  # fmt: skip
        self.parts = [(x, y, said) for (x, y), said in zip(blocks, passes.said(points), strict=True)]
        """Rows, labels, and (B, A, K) what they say."""
        self._let_go()

    def _let_go(self) -> None:
        """Leave out the rows that weigh least in every problem, `TAIL` of the weight together, where these are many."""
        heavy = [self._bent(said).sum(-1) for _, _, said in self.parts]
        totals = torch.stack([part.sum(0, dtype=torch.float64) for part in heavy]).sum(0).clamp_min(1e-300)
        shares = torch.cat([(part / totals).amax(1) for part in heavy])
        ranked = shares.sort()
        gone = int((ranked.values.cumsum(0) < TAIL).sum())
        if gone < MANY * len(shares) or gone == len(shares):  # or none weighs anything any more
            return
        least = ranked.values[gone]
        stays = torch.split(shares >= least, [len(x) for x, _, _ in self.parts])
        self.parts = [(x[stay], y[stay], said[stay]) for (x, y, said), stay in zip(self.parts, stays, strict=True)]

    def _bent(self, said: Tensor) -> Tensor:
        """Return the weights p (1 - p) in the Hessian."""
        return said * (1 - said) if self.softmax else said

    def product(self, which: Tensor, directions: Tensor) -> Tensor:
        """(B,) places among the A, (B, K, D + 1) -> (B, K, D + 1) float64."""
        flat, whole = directions.flatten(0, 1).float().T.contiguous(), len(which) == self.parts[0][2].shape[1]
        found = torch.zeros_like(directions).flatten(0, 1)
        for x, y, said in self.parts:
            chances = said if whole else said[:, which]
            turned = (x @ flat).reshape(len(x), *directions.shape[:2])
            if self.softmax:  # against the own class, as in the loss
                turned -= turned.gather(-1, _own(turned, y))
                turned -= (chances * turned).sum(-1, keepdim=True)
            found += turned.mul_(chances).flatten(1).T @ x
        return self.factor * found.reshape(directions.shape)

    def weights(self, place: int) -> Tensor:
        """Return the (N, K) weights p (1 - p) of the kept rows in the Hessian of one problem."""
        return self.factor * self._bent(torch.cat([said[:, place] for _, _, said in self.parts]))

    def rows(self, chosen: Tensor) -> Tensor:
        """Return (B, D + 1) kept rows, of ascending places."""
        ends = torch.tensor([len(x) for x, _, _ in self.parts]).cumsum(0)
        pieces = torch.split(
            chosen, torch.bincount(torch.bucketize(chosen, ends, right=True), minlength=len(ends)).tolist()
        )
        return torch.cat(
            [x[piece - end + len(x)] for (x, _, _), piece, end in zip(self.parts, pieces, ends, strict=True)]
        )


def _every_second(parts: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return every second row of all parts together; their memory is let go."""
    found, seen = [], 0
    for x, y in parts:
        found.append((x[seen % 2 :: 2].clone(), y[seen % 2 :: 2].clone()))
        seen += len(x)
    return found


def _own(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (B, A, 1) places of the own class among (B, A, K)."""
    return labels[:, None, None].expand(*logits.shape[:2], 1)


def _softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (A,) losses of (B, A, K) logits, which become their slopes in place.

    All is said of the other classes against the own one: next to a chance of 1 the loss would drown in its rounding.
    """
    at = _own(logits, labels)
    logits -= logits.gather(-1, at)
    logits.scatter_(-1, at, -torch.inf)
    highest = logits.amax(-1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
    losses = F.softplus(highest + total.log())
    share = (highest - losses).exp()
    F.threshold(logits.mul_(share), LEAST, 0.0, inplace=True).scatter_(-1, at, -share * total)
    return losses.sum((0, 2), dtype=torch.float64)


def _sigmoid(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (A,) losses of (B, A, K) logits, which become their slopes in place."""
    signs = 1 - 2 * labels[:, None].to(logits.dtype)
    losses = F.softplus(logits.mul_(signs)).sum((0, 2), dtype=torch.float64)
    logits.sigmoid_().mul_(signs)
    return losses
