"""Many smooth convex problems at once: L-BFGS (Nocedal, 1980) on M points, whose values come from one evaluation.

Every problem has its own step, memory and end; they share nothing but the call, so that one pass over the features serves
all. Problems that have ended are no longer evaluated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(A,) numbers of problems, (A, P) points -> (A,) values, (A, P) gradients, float64."""

ARMIJO = 1e-4
"""Share of the promised decrease that a step must bring."""
PAST = 3
"""Steps whose common fall is looked at: the last directions alone say too little of a long flat valley."""
STILL = 10
"""Times the tolerance that these steps may fall together at the end."""


class Descent:
    """M points on their way down; `run` may be called again, with a more exact evaluation."""

    def __init__(self, points: Tensor, memory: int) -> None:
        count, width = points.shape
        self.points = points
        self.values = torch.zeros(count, dtype=points.dtype)
        self.slopes = torch.zeros_like(points)
        self.left = torch.full((count,), torch.inf, dtype=points.dtype)
        """(M,) estimated distance of each value from its minimum."""
        self.evaluations = torch.zeros(count, dtype=torch.int64)
        self.memory = memory
        self._past = torch.full((count, PAST), torch.inf, dtype=points.dtype)
        self._steps = points.new_zeros(count, memory, width)
        self._turns = points.new_zeros(count, memory, width)
        self._kept = torch.zeros(count, dtype=torch.int64)

    def run(self, evaluate: Evaluate, tolerance: float, most: int, noise: float) -> None:
        """Go down until each value is estimated within `tolerance` of its minimum, relatively, or `most` evaluations.

        The estimate is what the next step promises; besides, the last steps must have brought next to nothing.

        `noise` is the relative error of the values, within which a rise is none.
        """
        live = torch.arange(len(self.points))
        self.values[live], self.slopes[live] = evaluate(live, self.points)
        self.evaluations += 1
        ways, sizes = self._ways(live), torch.ones(len(live), dtype=self.points.dtype)
        for _ in range(most):
            promised = (ways * self.slopes[live]).sum(1)
            fresh = sizes == 1
            self.left[live] = torch.where(fresh, -promised / 2, self.left[live])
            aim, fall = tolerance * self.values[live].abs(), self._past[live, 0] - self.values[live]
            going = ((self.left[live] > aim) | (fall > STILL * aim)) & (sizes > 1e-10) & (promised < 0)
            if not going.any():
                return
            live, ways, sizes, promised = live[going], ways[going], sizes[going], promised[going]
            trial = self.points[live] + sizes[:, None] * ways
            values, slopes = evaluate(live, trial)
            self.evaluations[live] += 1
            allowed = self.values[live] + ARMIJO * sizes * promised + noise * self.values[live].abs()
            good = values <= allowed  # not a number is not good
            self._accept(live[good], trial[good], values[good], slopes[good])
            curved = 2 * (values - self.values[live] - sizes * promised)
            shorter = (-sizes * promised / curved).nan_to_num(0.5, 0.5, 0.5).clamp(0.1, 0.5)
            sizes = torch.where(good, 1.0, sizes * shorter)
            ways[good] = self._ways(live[good])

    def _accept(self, which: Tensor, points: Tensor, values: Tensor, slopes: Tensor) -> None:
        step, turn = points - self.points[which], slopes - self.slopes[which]
        curved = (step * turn).sum(1) > 1e-12 * step.norm(dim=1) * turn.norm(dim=1)
        learnt, slot = which[curved], self._kept[which[curved]] % self.memory
        self._steps[learnt, slot], self._turns[learnt, slot] = step[curved], turn[curved]
        self._kept[learnt] += 1
        self._past[which] = torch.cat([self._past[which, 1:], self.values[which, None]], dim=1)
        self.points[which], self.values[which], self.slopes[which] = points, values, slopes

    def _ways(self, which: Tensor) -> Tensor:
        """Return (A, P) directions: minus the slopes times the inverse Hessian that the last steps speak of."""
        kept, way = self._kept[which], -self.slopes[which]
        shares = []
        deepest = min(self.memory, int(kept.max())) if len(kept) else 0
        for back in range(1, deepest + 1):
            step, turn, scale = self._remembered(which, kept, back)
            shares.append(scale * (step * way).sum(1))
            way -= shares[-1][:, None] * turn
        if deepest:
            step, turn, scale = self._remembered(which, kept, 1)
            way *= torch.where(scale > 0, 1 / (scale * turn.square().sum(1)), 1.0)[:, None]
        for back in range(deepest, 0, -1):
            step, turn, scale = self._remembered(which, kept, back)
            way += (shares[back - 1] - scale * (turn * way).sum(1))[:, None] * step
        return way

    def _remembered(self, which: Tensor, kept: Tensor, back: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (step, turn, 1 / their product) of `back` steps ago; zeros for a problem that has not come so far."""
        slot = (kept - back) % self.memory
        step, turn = self._steps[which, slot], self._turns[which, slot]
        known = kept >= back
        product = (step * turn).sum(1)
        return step, turn, torch.where(known, 1 / product, 0.0)
