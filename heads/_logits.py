"""The losses of many logistic regressions over one walk of the features, with their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads._columns import Columns
from heads._inputs import Inputs

KEPT_BYTES = 1 << 30
"""Standardised features up to this size stay in memory; of more, each walk reads the batches again."""
BLOCK = 4096
"""Rows whose logits are held at a time."""
LEAST = 1e-15
"""Chances below it are none: processors are slow at numbers next to zero."""


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
        """Return (B, D + 1) float32 and labels of every row, at most `BLOCK` rows at a time."""
        read = (self._columns(self.inputs.joined(batch.arrays), batch.targets) for batch in self.batches)
        return _cut(self.kept if self.stride == 1 else read)

    def kept_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the same of the rows that are kept."""
        return _cut(self.kept)

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
            return slopes.scatter_add_(-1, own_places(slopes, labels), slopes.new_ones(1).expand(*slopes.shape[:2], 1))
        return slopes.abs_().mul_(1 - slopes)

    def said(self, points: Tensor) -> list[Tensor]:
        """(A, K, D + 1) -> (B, A, K) of the kept rows: chances, or of columns of their own p (1 - p).

        Nearly always these are points of which the losses were told last; then nothing is computed.
        """
        places = self.last.places(points)
        if places is not None:
            return [part if places == list(range(part.shape[1])) else part[:, places] for part in self.last.parts]
        flat, found = points.flatten(0, 1).float().T.contiguous(), []
        for x, _ in self.kept_blocks():
            logits = (x @ flat).reshape(len(x), *points.shape[:2])
            said = logits.softmax(-1) if self.columns.softmax else logits.sigmoid() * (-logits).sigmoid()
            found.append(F.threshold(said, LEAST, 0.0))
        return found


def _cut(parts: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in parts:
        yield from zip(torch.split(x, BLOCK), torch.split(y, BLOCK), strict=True)


def _every_second(parts: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return every second row of all parts together; their memory is let go."""
    found, seen = [], 0
    for x, y in parts:
        found.append((x[seen % 2 :: 2].clone(), y[seen % 2 :: 2].clone()))
        seen += len(x)
    return found


def own_places(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (B, A, 1) places of the own class among (B, A, K)."""
    return labels[:, None, None].expand(*logits.shape[:2], 1)


def _softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (A,) losses of (B, A, K) logits, which become their slopes in place.

    All is said of the other classes against the own one: next to a chance of 1 the loss would drown in its rounding.
    """
    at = own_places(logits, labels)
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
