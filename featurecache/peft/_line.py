"""The straight line from the values before training to those after (WiSE: Wortsman et al., 2022)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Line:
    """Values of a module between what they are now and what training makes of them."""

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        own = module.state_dict()
        self.values = {name: own[name] for name in names if own[name].is_floating_point()}
        self.start = {name: _kept(value) for name, value in self.values.items()}
        self.end: dict[str, Tensor] = {}

    @torch.no_grad()
    def scale(self, alpha: float) -> None:
        """Go to the point `alpha` of the line, 0 before training and 1 after it."""
        self.end = self.end or {name: _kept(value) for name, value in self.values.items()}
        for name, value in self.values.items():
            value.copy_(self.end[name] if alpha == 1 else torch.lerp(self.start[name], self.end[name], alpha))
        if alpha == 1:
            self.end = {}


def _kept(value: Tensor) -> Tensor:
    """Return a copy in memory; of what has no values, as it is."""
    return value.detach() if value.is_meta else value.detach().to("cpu", copy=True)
