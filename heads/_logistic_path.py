"""The path of logistic regressions over C: few are solved one after the other, all others at once between them.

The optimum W as a function of log C is smooth. First some values are solved one after the other, about one a factor of
three, each from where the path points to; then all others at once, from where it must pass, so that they share every product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heads._curvature import Curvature
from heads._logits import Passes
from heads._newton import Descended, Product, descend
from heads._preconditioner import preconditioner

STATE_BYTES = 1 << 30
"""Of what rows say and of points, for the values of C that are solved at once; more are solved in several groups."""
ROUGH = 1e-3
"""Relative distance from the optimum, estimated, at which a C is left that was not asked for."""
NOISE = 1e-7
"""Relative error of a value whose products are float32."""
RUNG = 3.0
"""Factor between values of C that are solved one after the other, at most."""
NEAR = 4
"""Rungs from which a start is interpolated, at most."""
SLOW = 12
"""Rounds of conjugate gradients after which the preconditioner is made anew."""
STEPS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The optimum of one C."""

    strength: float
    point: Tensor
    """(K, D + 1) weights and intercepts for centred features, float64."""
    objective: float
    left: float
    """Estimated distance from the optimum, relative."""
    products: int

    def under(self, strength: float) -> float:
        """Return the objective of another C at this point."""
        penalty = float(self.point[:, :-1].square().sum()) / 2
        return (self.objective - penalty) * strength / self.strength + penalty

    def to_affine(self, passes: Passes) -> tuple[Tensor, Tensor]:
        """Return the (C, D) weight and (C,) bias of the features themselves, float64."""
        columns, weight = passes.columns, self.point[:, :-1]
        bias = (self.point[:, -1] - weight @ passes.mean) @ columns.spread + columns.constant
        return columns.spread.T @ weight, bias


class LogisticPath:
    """The optimum as a function of C, as far as it is known."""

    def __init__(self, passes: Passes, tolerance: float) -> None:
        self.passes, self.tolerance, self.shape = passes, tolerance, (passes.columns.count, passes.width + 1)
        self.known: dict[float, Solution] = {}
        """C -> the optimum of the rungs."""
        start = Curvature(passes, torch.zeros(1, *self.shape, dtype=torch.float64))
        self.preconditioners = {0.0: preconditioner(start, 0)}
        """C -> what was made at its optimum."""

    @torch.no_grad()
    def solve(self, strengths: Sequence[float]) -> dict[float, Solution]:
        """Return the optimum of every C."""
        asked = sorted(set(strengths))
        found: dict[float, Solution] = {}
        for strength in self._rungs(asked):
            found |= self._climb(strength, self.tolerance if strength in asked else ROUGH)
        rest = [strength for strength in asked if strength not in found]
        size = 4 * self.shape[0] * (2 * self.passes.rows // self.passes.stride + 16 * self.shape[1])
        most = max(1, STATE_BYTES // size)
        for start in range(0, len(rest), most):
            found |= self._between(rest[start : start + most])
        return {strength: found[strength] for strength in asked}

    def _rungs(self, asked: Sequence[float]) -> list[float]:
        """Return values of C that lead from next to nothing to the largest, those that are asked for wherever possible."""
        rungs = [min(asked[0], self.preconditioners[0.0].balance)]
        while rungs[-1] < asked[-1]:
            near = [strength for strength in asked if rungs[-1] < strength <= RUNG * rungs[-1] * (1 + 1e-9)]
            rungs.append(near[-1] if near else RUNG * rungs[-1])
        return rungs

    def _climb(self, strength: float, tolerance: float) -> dict[float, Solution]:
        """Solve the next rung, from the last one or from where the path points to, whichever is lower."""
        last = self.known[max(self.known)] if self.known else None
        start = torch.zeros(self.shape, dtype=torch.float64) if last is None else self._pointed(strength)
        problem = _Penalised(self, [strength])
        known = problem.evaluate(torch.arange(1), start.flatten()[None])
        if last is not None and not known[0] <= last.under(strength):
            start, known = last.point, None
        descended = descend(problem, start.flatten()[None], tolerance=tolerance, noise=NOISE, most=STEPS, known=known)
        found = self._solved([strength], descended)
        self.known |= found
        if int(descended.rounds[0]) > SLOW:
            self.preconditioners[strength] = preconditioner(Curvature(self.passes, found[strength].point[None]), 0)
        return found

    def _between(self, strengths: Sequence[float]) -> dict[float, Solution]:
        """Solve values of C between the rungs, all at once."""
        starts = torch.stack([self._pointed(strength) for strength in strengths]).flatten(1)
        problems = _Penalised(self, strengths)
        return self._solved(strengths, descend(problems, starts, tolerance=self.tolerance, noise=NOISE, most=STEPS))

    def _pointed(self, strength: float) -> Tensor:
        """Return the (K, D + 1) value at log C of the polynomial through the nearest rungs."""
        near = sorted(self.known, key=lambda rung: abs(math.log(rung / strength)))[:NEAR]
        total = torch.zeros(self.shape, dtype=torch.float64)
        for rung in near:
            share = math.prod(math.log(strength / o) / math.log(rung / o) for o in near if o != rung)
            total += share * self.known[rung].point
        return total

    def _solved(self, strengths: Sequence[float], descended: Descended) -> dict[float, Solution]:
        left = descended.left / descended.values.abs().clamp_min(1e-300)
        return {
            strength: Solution(
                strength, descended.points[number].reshape(self.shape), float(descended.values[number]), float(left[number]),
                int(descended.products[number]),
            )
            for number, strength in enumerate(strengths)
        }  # fmt: skip


class _Penalised:
    """The objectives of some values of C. See `Problems`."""

    def __init__(self, path: LogisticPath, strengths: Sequence[float]) -> None:
        self.passes, self.shape = path.passes, path.shape
        self.strengths = torch.tensor(strengths, dtype=torch.float64)
        self.preconditioners = list(path.preconditioners.values())
        rungs = list(path.preconditioners)
        self.nearest = torch.tensor([rungs.index(_nearest(strength, rungs)) for strength in strengths])

    def evaluate(self, which: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return C * the summed losses + half the squared weights, and the gradients."""
        points = points.reshape(-1, *self.shape)
        losses, slopes = self.passes.losses(points)
        strengths, weights = self.strengths[which], points[:, :, :-1]
        slopes *= strengths[:, None, None]
        slopes[:, :, :-1] += weights
        return strengths * losses + weights.square().sum((1, 2)) / 2, slopes.flatten(1)

    def curvature(self, which: Tensor, points: Tensor) -> Product:
        """Return the Hessians as a function."""
        there, strengths = Curvature(self.passes, points.reshape(-1, *self.shape)), self.strengths[which]

        def product(places: Tensor, directions: Tensor) -> Tensor:
            directions = directions.reshape(-1, *self.shape)
            found = strengths[places, None, None] * there.product(places, directions)
            found[:, :, :-1] += directions[:, :, :-1]
            return found.flatten(1)

        return product

    def preconditioned(self, which: Tensor, slopes: Tensor) -> Tensor:
        """Return the slopes times the inverse that was made nearest."""
        found = torch.empty_like(slopes)
        for number in sorted(set(self.nearest[which].tolist())):
            here = (self.nearest[which] == number).nonzero()[:, 0]
            near, given = self.preconditioners[number], slopes[here].reshape(-1, *self.shape)
            found[here] = near.apply(self.strengths[which[here]], given).flatten(1)
        return found


def _nearest(strength: float, rungs: Sequence[float]) -> float:
    """Return the rung where a preconditioner was made that is nearest to C; that at W = 0 stands for all below the others."""
    made = [rung for rung in rungs if rung]
    if not made or strength < min(made) / RUNG:
        return 0.0
    return min(made, key=lambda rung: abs(math.log(rung / strength)))
