"""Kernel ridge over layers: rows are compared layer by layer, the deeper the layer the more it counts.

    k(x, y) = (sum_l w_l exp(-t |x_l - y_l|^2 / D_l))^p,   w_l = (l / L)^s / sum_m (m / L)^s for the l-th of L arrays.
A sum over layers asks for rows that agree in some of them; its square for rows that agree in several at once.
Memory does not grow with the rows: of N training rows, M landmarks are kept, and the ridge (heads/ridge.py: lambda by exact
leave-one-out, outputs calibrated) reads k(x, landmarks) K_MM^(-1/2) (Nystroem's method). With M = N it is the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import ConfigError
from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads._inputs import Inputs
from heads.ridge import as_logits, solve_ridge

PAPER = "Using the Nystroem Method to Speed Up Kernel Machines (2000)"
CONSUMES = "all"
LEARNING_RATE = 0.0
FITTED = "closed form"

Shape = tuple[float, float, float]
"""Depth s, sharpness t, power p."""

PENALTIES = tuple(10.0 ** (k / 4) for k in range(-20, 5))
"""Tried values of lambda per row: the kernel of a row with itself is 1, so the eigenvalues are far below ridge's."""
PIECE = 256
"""Rows whose likeness to all landmarks is held at a time."""
SMALL = 1e-5
"""Share of the largest eigenvalue of K_MM below which directions are left out: in float32 they are noise."""


class Kernel(nn.Module):
    """M landmarks, what each says of a row, and a ridge over it. Solved, never trained."""

    landmarks: Tensor
    """(M, sum of D_l) standardised features in float16, M = 0 until it is solved."""
    weight: Tensor
    """(M, C): K_MM^(-1/2) and the ridge's weight in one."""
    bias: Tensor
    """(C,)."""

    def __init__(self, spec: HeadSpec, shape: Shape, landmarks: int, lambdas: tuple[float, ...]) -> None:
        super().__init__()
        self.spec, self.shape, self.most, self.penalties = spec, shape, landmarks, lambdas
        self.inputs = Inputs(spec)
        self.register_buffer("landmarks", torch.zeros(0, self.inputs.width, dtype=torch.float16))
        self.register_buffer("weight", torch.zeros(0, spec.num_classes))
        self.register_buffer("bias", torch.zeros(spec.num_classes))

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """L arrays of (B, D_l) -> (B, C) logits."""
        marks = torch.split(self.landmarks.to(self.weight.dtype), list(self.inputs.widths), dim=1)
        parts = _pieces(self.inputs(arrays))
        return torch.cat([likeness(rows, marks, self.shape) @ self.weight + self.bias for rows in parts])

    def solve(
        self, batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
    ) -> dict[str, float]:
        """Choose landmarks and lambda, from batches that are walked four times."""
        self.landmarks = _spread(self.inputs, batches, self.most).to(torch.float16)
        marks = torch.split(self.landmarks.float(), list(self.inputs.widths), dim=1)
        values, ways = torch.linalg.eigh(likeness(marks, marks, self.shape).double())
        kept = values > SMALL * values[-1]
        root = ways[:, kept] / values[kept].sqrt()
        fitted = solve_ridge(
            _Lifted(self.inputs, marks, self.shape, root), batches, self.spec, self.penalties, validation
        )
        weight, self.bias = (part.float() for part in as_logits(fitted, self.spec.task))
        self.weight = root.float() @ weight
        return {**fitted.chosen(), "landmarks": float(len(self.landmarks))}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for as many landmarks as were saved, which only `solve` knows; all other sizes must be this head's own."""
        for name in ("landmarks", "weight"):
            if prefix + name in state_dict:
                buffer = getattr(self, name)
                setattr(self, name, buffer.new_empty(len(state_dict[prefix + name]), *buffer.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Lifted(Inputs):
    """What the ridge reads instead of the features themselves."""

    def __init__(self, inputs: Inputs, marks: Sequence[Tensor], shape: Shape, root: Tensor) -> None:
        nn.Module.__init__(self)
        self.names, self.read, self.marks, self.shape, self.root = inputs.names, inputs, marks, shape, root

    @property
    def width(self) -> int:
        """Directions of the landmarks' kernel."""
        return self.root.shape[1]

    def joined(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """L arrays of (B, D_l) -> (B, R), whose inner products are the kernel."""
        parts = _pieces(self.read(arrays))
        return torch.cat([likeness(rows, self.marks, self.shape).double() @ self.root for rows in parts])


def _pieces(arrays: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """L arrays of (B, D_l) -> the same rows, at most `PIECE` at a time; all of them in a graph, where B is free."""
    if torch.compiler.is_exporting():
        return [tuple(arrays)]
    return list(zip(*(torch.split(values, PIECE) for values in arrays), strict=True))


def likeness(rows: Sequence[Tensor], marks: Sequence[Tensor], shape: Shape) -> Tensor:
    """L arrays of (B, D_l), L arrays of (M, D_l) -> (B, M) values of the kernel in [0, 1]."""
    depth, sharpness, power = shape
    places = [(place / len(rows)) ** depth for place in range(1, len(rows) + 1)]
    weights = [place / sum(places) for place in places]
    total = sum(w * (-sharpness * apart).exp() for w, apart in zip(weights, map(_apart, rows, marks), strict=True))
    assert isinstance(total, Tensor)
    return total**power


def _apart(rows: Tensor, marks: Tensor) -> Tensor:
    """(B, D), (M, D) -> (B, M) squared distances by width."""
    squares = rows.square().sum(1)[:, None] + marks.square().sum(1) - 2 * rows @ marks.T
    return squares.clamp_min(0) / rows.shape[1]


def _spread(inputs: Inputs, batches: Iterable[FeatureBatch], most: int) -> Tensor:
    """Return at most `most` rows, drawn once from all; how they come in batches does not count."""
    draw, tickets, kept = torch.Generator().manual_seed(0), torch.zeros(0), torch.zeros(0, sum(inputs.widths))
    for batch in batches:
        tickets = torch.cat([tickets, torch.tensor([float(torch.rand((), generator=draw)) for _ in range(len(batch))])])
        kept = torch.cat([kept, torch.cat(inputs(batch.arrays), 1)])
        first = tickets.argsort()[:most]
        tickets, kept = tickets[first], kept[first]
    if len(kept) < 2:
        raise ConfigError([f"kernel needs at least two training rows, got {len(kept)}"])
    return kept


def build(
    spec: HeadSpec,
    *,
    depth: float = 2.0,
    sharpness: float = 0.25,
    power: float = 1.0,
    landmarks: int = 2048,
    lambdas: tuple[float, ...] = PENALTIES,
) -> Kernel:
    """Return a kernel ridge over the arrays of `spec` that keeps at most `landmarks` rows.

    `depth`, `sharpness` and `power` are s, t and p of the kernel, `lambdas` the penalties per row to choose from.

    Raises:
        ConfigError: lists every option out of range.
    """
    check(
        (0 <= depth < math.inf, f"depth must not be negative, got {depth}"),
        (0 < sharpness < math.inf, f"sharpness must be positive, got {sharpness}"),
        (0 < power < math.inf, f"power must be positive, got {power}"),
        (landmarks > 1, f"landmarks must be at least 2, got {landmarks}"),
        (min(lambdas, default=0) > 0, f"lambdas must be positive, got {lambdas or 'none'}"),
        (spec.combine == "concat", "kernel reads every layer by itself: --layers mean does not apply"),
    )
    return Kernel(spec, (depth, sharpness, power), landmarks, tuple(sorted(lambdas)))
