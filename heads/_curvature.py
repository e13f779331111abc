"""Hessians of the losses of many logistic regressions, from what every row says, as products with directions."""

from __future__ import annotations

import torch
from torch import Tensor

from heads._logits import Passes, own_places

TAIL, MANY = 1e-3, 0.25
"""Share of the weight in the Hessian that may be left out for speed, where it is that share of the rows or more."""


class Curvature:
    """Hessians of the summed losses at the points of A problems, from the rows that are kept."""

    def __init__(self, passes: Passes, points: Tensor) -> None:
        """Remember what every row says at (A, K, D + 1) points."""
        self.softmax, self.factor, self.width = passes.columns.softmax, passes.stride, points.shape[2]
        blocks = zip(passes.kept_blocks(), passes.said(points), strict=True)
        self.parts = [(x, y, said) for (x, y), said in blocks]
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
                turned -= turned.gather(-1, own_places(turned, y))
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
