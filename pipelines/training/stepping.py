"""How values move: the rule of a step, and its rate over all of them; what users say of it, and what the loop does."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from pipelines.training.optimizers import Rule
from pipelines.training.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class Stepping:
    """Steps of an optimiser; the rate that they begin with is of every head."""

    optimizer: Rule = "adamw"
    """Rule of the steps."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = False
    """Let sgd look ahead along its momentum."""
    schedule: Schedule = "cosine"
    """Learning rate over the steps: half a cosine to zero, constant, a cosine that changes between epochs, or CoOp's."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises to its base."""
    warmup_lr: float = 1e-5
    """Learning rate of the first epoch of the schedule coop."""
    least_lr: float = 0.0
    """Learning rate at which a cosine ends."""
    clip_norm: float | None = None
    """Cut the gradient of a step to this length, that of a head and what it learns with together; default: never."""
    select: Literal["auto", "loss", "metric"] = "auto"
    """What the epoch is chosen by on validation: the loss, or the task's metric and then the loss; of equal epochs the later one.
    auto: the loss for heads on frozen features, the metric where a backbone is trained, and R2 for a regression."""
    data_seed: int = 0
    """Seed of the row order."""
    quiet: bool = False
    """Show no progress."""

    def conditions(self) -> list[tuple[bool, str]]:
        """Return what must hold of the settings, each with what is said where it does not."""
        return [
            (0 <= self.momentum < 1, f"momentum must lie in [0, 1), got {self.momentum}"),
            (self.warmup_epochs >= 0, f"warmup_epochs must not be negative, got {self.warmup_epochs}"),
            (0 < self.warmup_lr < math.inf, f"warmup_lr must be positive and finite, got {self.warmup_lr}"),
            (0 <= self.least_lr < math.inf, f"least_lr must be finite and not negative, got {self.least_lr}"),
            (
                not self.nesterov or (self.optimizer == "sgd" and self.momentum > 0),
                f"nesterov looks ahead along the momentum of sgd, and this is {self.optimizer} with {self.momentum}",
            ),
            (
                self.clip_norm is None or 0 < self.clip_norm < math.inf,
                f"clip_norm must be positive and finite, got {self.clip_norm}",
            ),
        ]

    def stepping(self) -> dict[str, Any]:
        """Return these settings alone, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Stepping)}
