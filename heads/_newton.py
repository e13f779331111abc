"""Many smooth convex problems at once: Newton's method, whose ways are found by conjugate gradients (Dembo and Steihaug, 1983).

Every problem has its own way, step and end; they share nothing but the calls, so that one pass over the features serves
all. Problems that have ended are no longer evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

ARMIJO = 1e-4
"""Share of the promised decrease that a step must bring."""
SHARE = 5e-2
"""Of the fall of a way that conjugate gradients may leave, where the end does not ask for less."""
DELAY = 4
"""Rounds that tell what was left before them: the fall that they brought (Hestenes and Stiefel, 1952; Strakos and Tichy, 2002),
and, set against that of as many before, what is left after them."""
SLOWEST = 0.95
"""Ratio of the two that is believed, at most."""
SAFETY = 5.0
"""Times the estimate that is counted with: conjugate gradients rest now and then."""
ROUNDS = 100
"""Of conjugate gradients for one way, at most."""

Product = Callable[[Tensor, Tensor], Tensor]
"""(B,) places among the problems asked for, (B, P) directions -> (B, P) products with their Hessians."""


class Problems(Protocol):
    """M convex functions of P values each."""

    def evaluate(self, which: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """(A,) numbers of problems, (A, P) points -> (A,) values, (A, P) gradients, float64."""

    def curvature(self, which: Tensor, points: Tensor) -> Product:
        """Return the Hessians of problems at (A, P) points, as a function."""

    def preconditioned(self, which: Tensor, slopes: Tensor) -> Tensor:
        """Return (A, P) slopes times something near the inverse Hessians, symmetric and positive."""


@dataclass(frozen=True, slots=True, eq=False)
class Descended:
    """Where the problems ended."""

    points: Tensor
    """(M, P)."""
    values: Tensor
    """(M,)."""
    left: Tensor
    """(M,) estimated distance of each value from its minimum."""
    rounds: Tensor
    """(M,) of conjugate gradients in the last step."""
    products: Tensor
    """(M,) evaluations and products with the Hessian in all."""


@dataclass(slots=True, eq=False)
class _Way:
    """Directions of A problems, and what they promise."""

    ways: Tensor
    falls: Tensor
    """(A,) by which the values fall if the functions are the parabolas that they look like."""
    missed: Tensor
    """(A,) estimated distance from the bottom of the parabola, at most."""
    rounds: Tensor


def descend(
    problems: Problems, starts: Tensor, *, tolerance: float, noise: float, most: int = 100,
    known: tuple[Tensor, Tensor] | None = None,
) -> Descended:  # fmt: skip
    """Go down from (M, P) until each value is estimated within `tolerance` of its minimum, relatively, or `most` steps.

    What is left after a step is estimated from what the way missed, and from how far the fall was from the promised one.
    `noise` is the relative error of the values, within which a rise is none; `known` is what `evaluate` says of the starts.
    """
    points, every = starts.clone(), torch.arange(len(starts))
    values, slopes = known or problems.evaluate(every, points)
    rounds, products = torch.zeros_like(every), torch.ones_like(every)
    level = ~slopes.any(1)
    left = torch.where(level, 0.0, torch.full_like(values, torch.inf))
    live = every[~level]
    for _ in range(most):
        if not len(live):
            break
        way = _ways(problems, live, points[live], slopes[live], tolerance * values[live].abs())
        rounds[live] = way.rounds
        products[live] += way.rounds
        sizes = _step(problems, live, way.ways, points, values, slopes, products, noise, left, way)
        live = live[(left[live] > tolerance * values[live].abs()) & (sizes > 0)]
    return Descended(points, values, left, rounds, products)


def _step(
    problems: Problems, live: Tensor, ways: Tensor, points: Tensor, values: Tensor, slopes: Tensor,
    products: Tensor, noise: float, left: Tensor, way: _Way,
) -> Tensor:  # fmt: skip
    """Go along the ways as far as the values fall, in place; return (A,) sizes of the steps, 0 where none was found."""
    promised, sizes = (ways * slopes[live]).sum(1), torch.ones(len(live), dtype=points.dtype)
    pending = torch.arange(len(live))[promised < 0]
    sizes[promised >= 0] = 0
    while len(pending):
        which = live[pending]
        trial = points[which] + sizes[pending, None] * ways[pending]
        found, turned = problems.evaluate(which, trial)
        products[which] += 1
        error = noise * values[which].abs()
        good = found <= values[which] + ARMIJO * sizes[pending] * promised[pending] + error  # not a number is not good
        wrong = (values[which] - found - way.falls[pending]).abs() - error
        whole = torch.maximum(way.missed[pending], wrong)
        left[which] = torch.where(good & (sizes[pending] == 1), whole, left[which])
        bent = 2 * (found - values[which] - sizes[pending] * promised[pending])
        shorter = (-sizes[pending] * promised[pending] / bent).nan_to_num(0.5, 0.5, 0.5).clamp(0.1, 0.5)
        points[which[good]], values[which[good]], slopes[which[good]] = trial[good], found[good], turned[good]
        sizes[pending] = torch.where(good, sizes[pending], sizes[pending] * shorter)
        sizes[pending[sizes[pending] < 1e-10]] = 0
        pending = pending[~good & (sizes[pending] > 0)]
    return sizes


def _ways(problems: Problems, which: Tensor, points: Tensor, slopes: Tensor, aims: Tensor) -> _Way:
    """Solve Hessian * way = -slope for A problems; each as well as its end, (A,) `aims`, asks for."""
    product = problems.curvature(which, points)
    ways, rest = torch.zeros_like(slopes), -slopes
    turn = problems.preconditioned(which, rest)
    sizes = (rest * turn).sum(1)
    falls, late = sizes.new_zeros(len(which), 0), torch.full_like(sizes, torch.inf)
    rounds = torch.zeros_like(which)
    live = torch.arange(len(which))[sizes > 0]
    for _ in range(ROUNDS):
        if not len(live):
            break
        bent = product(live, turn[live])
        length = sizes[live] / (turn[live] * bent).sum(1)
        falls = F.pad(falls, (0, 1))
        falls[live, -1] = length * sizes[live] / 2
        ways[live] += length[:, None] * turn[live]
        rest[live] -= length[:, None] * bent
        eased = problems.preconditioned(which[live], rest[live])
        now = (rest[live] * eased).sum(1)
        turn[live] = eased + (now / sizes[live])[:, None] * turn[live]
        sizes[live] = now
        rounds[live] += 1
        late[live] = _left(falls[live])
        live = live[(late[live] > torch.maximum(SHARE * falls[live].sum(1), aims[live])) & (now > 0)]
    return _Way(ways, falls.sum(1), late, rounds)


def _left(falls: Tensor) -> Tensor:
    """Estimate from the (B, R) falls of R rounds what (B,) is left, as if it shrank on as it did in the last rounds."""
    if falls.shape[1] < DELAY:
        return torch.full_like(falls[:, 0], torch.inf)
    last, before = falls[:, -DELAY:].sum(1), falls[:, -2 * DELAY : -DELAY].sum(1)
    ratio = (last / before).clamp(max=SLOWEST) if falls.shape[1] >= 2 * DELAY else torch.zeros_like(last)
    return SAFETY * last * (ratio / (1 - ratio)).clamp(min=1)
