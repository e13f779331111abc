"""Values that what a method adds begins with."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

Compat = Literal["none", "osu"]
"""none: what the papers say. osu: what the published code of the PEFT study does."""


def linear(given: int, made: int, *, bias: bool = True, start: str = "kaiming") -> nn.Linear:
    """Return a linear map that begins as `start` says: kaiming (torch's own), xavier, or zero; its bias at zero."""
    found = nn.Linear(given, made, bias=bias)
    if start == "kaiming":
        nn.init.kaiming_uniform_(found.weight, a=math.sqrt(5))
    elif start == "xavier":
        nn.init.xavier_uniform_(found.weight)
    else:
        nn.init.zeros_(found.weight)
    if bias:
        nn.init.zeros_(found.bias)
    return found


def overwrite(part: nn.Module) -> None:
    """Begin as the code of the PEFT study does: it starts timm's way whatever linear map its methods had prepared."""
    for inner in part.modules():
        if isinstance(inner, nn.Linear):
            nn.init.trunc_normal_(inner.weight, std=0.02, a=-2.0, b=2.0)
            if inner.bias is not None:
                nn.init.zeros_(inner.bias)
