"""How the loop trains: what all heads that are trained together share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featurecache.checks import check
from featurecache.sources import Order
from pipelines.training.optimizers import Rule
from pipelines.training.outputs import EVALUATION_BATCH
from pipelines.training.schedules import Schedule

LEAST_EPOCHS, MOST_EPOCHS, LEAST_STEPS = 50, 300, 1000
"""Of a training whose length nobody said: few rows make few steps an epoch, and a head that is far from its optimum."""


def usual_epochs(rows: int, batch_size: int) -> int:
    """Return the epochs over that many training rows where nobody said how many."""
    steps = math.ceil(max(rows, 1) / batch_size)
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / steps)))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How heads are trained; what the heads do not share stands in `Member`."""

    epochs: int = 50
    batch_size: int = 256
    """Rows a step."""
    accumulate: int = 1
    """Parts into which the rows of a step are cut, one after the other: less memory, the same gradient."""
    optimizer: Rule = "adamw"
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises to its base."""
    warmup_lr: float = 1e-5
    """Rate of the first epoch of the schedule coop."""
    least_lr: float = 0.0
    """Rate at which the cosines end."""
    nesterov: bool = False
    """Look ahead along the momentum of sgd (Nesterov, 1983)."""
    clip_norm: float | None = None
    """Length to which the gradient of a step is cut; None: it is not."""
    order: Order = "shuffled"
    reshuffle: bool = True
    """Draw another order in every epoch; False: the batches of the first one come again, in their order."""
    data_seed: int = 0
    """Fixes the order of the rows of every epoch."""
    patience: int | None = None
    """Epochs without a better value on validation that end a training of one head; None: none do."""
    judgings: int = 200
    """Most measurements on validation, evenly spread: epochs of a few rows cost less than to say where they led."""
    evaluation_batch: int = EVALUATION_BATCH
    """Rows of a step of measuring."""
    scale_loss: bool = False
    """Multiply the loss by what keeps gradients in float16 from vanishing, and skip steps where that was too much."""
    device: str = "cpu"
    quiet: bool = True

    def __post_init__(self) -> None:
        check(
            (self.epochs >= 0, f"epochs must not be negative, got {self.epochs}"),
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
            (
                self.accumulate > 0 and self.batch_size % self.accumulate == 0,
                f"accumulate must be positive and divide batch_size, got {self.accumulate} of {self.batch_size}",
            ),
            (self.judgings > 0, f"judgings must be positive, got {self.judgings}"),
            (0 <= self.momentum < 1, f"momentum must lie in [0, 1), got {self.momentum}"),
            (self.warmup_epochs >= 0, f"warmup_epochs must not be negative, got {self.warmup_epochs}"),
            (self.least_lr >= 0, f"least_lr must not be negative, got {self.least_lr}"),
            (not self.nesterov or self.optimizer == "sgd", f"nesterov is for sgd, and this is {self.optimizer}"),
            (self.clip_norm is None or self.clip_norm > 0, f"clip_norm must be positive, got {self.clip_norm}"),
        )

    @property
    def stride(self) -> int:
        """Epochs from one measurement on validation to the next; the last epoch is always measured."""
        return max(1, math.ceil(self.epochs / self.judgings))
