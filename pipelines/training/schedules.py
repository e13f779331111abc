"""Learning rates over the steps of a training."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

Schedule = Literal["cosine", "constant", "cosine_epochs", "coop"]
"""
- cosine: half a cosine from the base rate to the least one, over all steps.
- constant: the base rate.
- cosine_epochs: half a cosine whose rate changes between epochs only (Loshchilov and Hutter, 2017, without restarts).
- coop: a first epoch at the warm-up rate; epoch e has the half cosine of e - 1, so that zero is not reached (CoOp, 2022).
"""


def learning_rates(
    schedule: Schedule,
    base: Tensor,
    step: int,
    *,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: float = 0.0,
    warmup_lr: float = 1e-5,
    least_lr: float = 0.0,
) -> Tensor:
    """Return the rates of step `step` (0-based) for base rates of any shape.

    `warmup_epochs` rise in equal steps to the base rate, before the schedule has the rest; coop has `warmup_lr` instead.
    The first two cosines end at `least_lr`, or stay at a base rate that is below it.
    """
    epoch = step // steps_per_epoch
    if schedule == "coop":
        return base * 0 + warmup_lr if epoch == 0 else base * _half_cosine((epoch - 1) / epochs)
    warmup = round(warmup_epochs * steps_per_epoch)
    if step < warmup:
        return base * ((step + 1) / (warmup + 1))
    if schedule == "constant":
        return base
    if schedule == "cosine_epochs":
        height = _half_cosine((epoch - warmup_epochs) / max(epochs - warmup_epochs, 1))
    else:
        height = _half_cosine((step - warmup) / max(epochs * steps_per_epoch - warmup, 1))
    least = base.clamp(max=least_lr)
    return least + (base - least) * height


def _half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))
