"""Layer-wise feature aggregation: attention over layers, queried by the last one, from every layer's features to logits.

The image side of LFA on any backbone:
    a_l = softmax_l(q . k_l / sqrt(E)),  q = W_Q x_L,  k_l = W_K,l x_l,   logits = sum_l a_l W_V,l x_l + b.
The published head reads equal widths and compares with CLIP's text; here every layer has maps of its own width, and the
values are logits. By default the values start at the closed-form ridge over all layers with uniform attention. Where rows are
few, the ridge first scales layer l of L by (l / L)^s, so that it prefers the deep ones: s by leave-one-out, the largest where a
class has next to no rows. With at most `CONVERGES` rows it stays there: attention over layers cannot be learnt from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads._inputs import Inputs, alike
from heads._outputs import Outputs
from heads.ridge import RidgeFit, as_logits, solve_ridge

PAPER = "Efficient Transfer Learning driven by Layer-wise Features Aggregation (2024)"
CONSUMES = "all"
LEARNING_RATE = 1e-4
FITTED = "closed form"
CONVERGES = 32

Start = Literal["auto", "ridge", "probe", "published"]

DEPTHS = (0.0, 2.0, 4.0, 8.0)
"""Tried s; 0 is the ridge itself."""
FEW_ROWS = 2000
"""Rows up to which s is tried: with more, all layers pay, and every s costs a factorisation."""
FEW_OF_A_CLASS = 4
"""Rows of the smallest class below which leave-one-out says nothing of s."""


class LayerAttention(nn.Module):
    """Attention over L layers; see the head of this file."""

    def __init__(self, spec: HeadSpec, start: Start, width: int, dropout: float) -> None:
        super().__init__()
        self.spec, self.start, self.dropout = spec, start, dropout
        self.inputs = Inputs(spec)
        self.query = nn.Linear(self.inputs.widths[-1], width, bias=False)
        self.keys = nn.ModuleList(nn.Linear(d, width, bias=False) for d in self.inputs.widths)
        self.values = nn.ModuleList(nn.Linear(d, spec.num_classes, bias=False) for d in self.inputs.widths)
        self.bias = nn.Parameter(torch.zeros(spec.num_classes))
        self.outputs = Outputs(spec)
        if spec.converge and start == "auto":
            self.requires_grad_(False)
        if start != "published":
            nn.init.zeros_(self.query.weight)  # uniform attention; the keys are drawn, so the query learns at once

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """L arrays of (B, D_l) -> (B, C) logits."""
        columns = self._columns(arrays)
        weights = self._weights(columns)
        values = [value.weight @ x for value, x in zip(self.values, columns, strict=True)]
        logits = torch.stack([a * value for a, value in zip(weights, values, strict=True)]).sum(0).mT + self.bias
        said: Tensor = self.outputs(logits)
        return said

    def attention(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """L arrays of (B, D_l) -> (B, L) weights of the layers, each row summing to one."""
        return self._weights(self._columns(arrays)).mT

    def _columns(self, arrays: Mapping[str, Tensor]) -> list[Tensor]:
        """Return L arrays of (D_l, B): W x for every row is then one product, however many heads a stack has."""
        return [F.dropout(x, self.dropout, self.training).mT for x in self.inputs(arrays)]

    def _weights(self, columns: list[Tensor]) -> Tensor:
        """L arrays of (D_l, B) -> (L, B)."""
        query = self.query.weight @ columns[-1]
        scores = [(query * (key.weight @ x)).sum(0) for key, x in zip(self.keys, columns, strict=True)]
        return (torch.stack(scores) / math.sqrt(len(query))).softmax(0)

    def solve(
        self, batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
    ) -> dict[str, float]:
        """Set the values to a closed form under uniform attention; returns what was chosen, for the record.

        "auto": over all layers, scaled by their depth; "ridge": as they are; "probe": over the last layer alone;
        "published": nothing is set.
        """
        return solve_together([self], batches, validation)[0]

    def asks(self, depth: float = 0.0) -> Inputs:
        """Return what the closed form of the start reads: every layer times (l / L)^depth, or the last one alone."""
        names = self.inputs.names[-1:] if self.start == "probe" else self.inputs.names
        scales = dict(zip(self.inputs.names, self._scales(depth), strict=True))
        statistics = (
            {name: _scale_up(self.spec, name, scales[name]) for name in names} if depth else self.spec.statistics
        )
        spec = replace(
            self.spec, shapes={name: self.spec.shapes[name] for name in names}, combine="concat", statistics=statistics
        )
        return Inputs(spec).to(self.bias.device)

    def _scales(self, depth: float) -> list[float]:
        count = len(self.inputs.names)
        return [((place + 1) / count) ** depth for place in range(count)]

    def take(self, read: Inputs, fitted: RidgeFit, depth: float = 0.0) -> dict[str, float]:
        """Set the values to a solution over the arrays that `read` joins; returns what was chosen."""
        columns, bias = as_logits(fitted, self.spec.task)
        weight, bias = self.outputs.invert_affine(columns.T, bias)
        pieces = dict(zip(read.names, torch.split(weight, list(read.widths), dim=1), strict=True))
        with torch.no_grad():
            self.bias.copy_(bias)
            for name, value, scale in zip(self.inputs.names, self.values, self._scales(depth), strict=True):
                piece = pieces.get(name)
                set_to = torch.zeros(()) if piece is None else piece * len(self.values) * scale
                value.get_parameter("weight").copy_(set_to)
        return {**fitted.chosen(), **({"depth": depth} if self.start == "auto" else {})}


def _scale_up(spec: HeadSpec, name: str, scale: float) -> tuple[Tensor, Tensor]:
    """Return the statistics under which an array comes out `scale` times as large."""
    width = spec.shapes[name]
    mean, deviation = spec.statistics.get(name, (torch.zeros(width), torch.ones(width)))
    return mean, deviation / scale


def solve_together(
    heads: Sequence[LayerAttention], batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
) -> list[dict[str, float]]:
    """Start many heads; those that start at the ridge over the same arrays share it."""
    found: list[dict[str, float]] = [{} for _ in heads]
    places = [place for place, head in enumerate(heads) if head.start != "published"]
    reads = [heads[place].asks() for place in places]
    for group in alike(reads):
        fits: dict[float, tuple[Inputs, RidgeFit]] = {}
        for place in (places[number] for number in group):
            head = heads[place]
            depths = _depths_to_try(head, batches) if head.start == "auto" else (0.0,)
            for depth in depths:
                if depth not in fits:
                    read = head.asks(depth)
                    fits[depth] = read, solve_ridge(read, batches, head.spec, validation=validation)
            best = min(depths, key=lambda depth: min(fits[depth][1].errors))
            found[place] = head.take(*fits[best], best)
    return found


def _depths_to_try(head: LayerAttention, batches: Iterable[FeatureBatch]) -> tuple[float, ...]:
    """Return the s among which leave-one-out chooses, by the number of rows and that of the smallest class."""
    rows, counts = 0, torch.zeros(head.spec.num_classes, dtype=torch.int64)
    for batch in batches:
        rows += len(batch)
        if head.spec.task == "classification":
            counts += torch.bincount(batch.targets, minlength=len(counts))
    smallest = int(counts[counts > 0].min()) if counts.any() else rows // max(1, head.spec.num_classes)
    if rows > FEW_ROWS:
        return DEPTHS[:1]
    return DEPTHS if rows > CONVERGES and smallest >= FEW_OF_A_CLASS else DEPTHS[-1:]


def build(spec: HeadSpec, *, start: Start = "auto", width: int = 64, dropout: float = 0.0) -> LayerAttention:
    """Return the head for the arrays of `spec`, one a layer; the last one asks.

    `start` says where the values begin ("auto": see above; "published": torch's default everywhere), `width` is E of queries and keys,
    `dropout` the share of elements of the layers' features that a training step drops.

    Raises:
        ConfigError: lists every option out of range.
    """
    check(
        (width > 0, f"width must be positive, got {width}"),
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
        (spec.combine == "concat", "lfa reads every layer by itself: --layers mean does not apply"),
    )
    return LayerAttention(spec, start, width, dropout)
