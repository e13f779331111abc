"""How the loop trains: what all heads that are trained together share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featurecache.checks import check
from featurecache.sources import Order
from pipelines.training.outputs import EVALUATION_BATCH
from pipelines.training.stepping import Stepping

LEAST_EPOCHS, MOST_EPOCHS, LEAST_STEPS = 50, 1000, 1000
"""Of a training whose length nobody said: few rows make few steps an epoch, and a head that is far from its optimum."""


def usual_epochs(rows: int, batch_size: int) -> int:
    """Return the epochs over that many training rows where nobody said how many."""
    steps = math.ceil(max(rows, 1) / batch_size)
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / steps)))


@dataclass(frozen=True, kw_only=True)
class Recipe(Stepping):
    """How heads are trained; what the heads do not share stands in `Member`."""

    epochs: int = 50
    batch_size: int = 256
    """Rows a step."""
    accumulate: int = 1
    """Parts into which the rows of a step are cut, one after the other: less memory, the same gradient."""
    order: Order = "shuffled"
    reshuffle: bool = True
    """Draw another order in every epoch; False: the batches of the first one come again, in their order."""
    patience: int | None = None
    """Epochs without a better value on validation that end a training of one head; None: none do."""
    judgings: int = 200
    """Most measurements on validation, evenly spread: epochs of a few rows cost less than to say where they led. With
    `patience`, which counts epochs, every epoch is measured."""
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
            *self.conditions(),
        )

    @property
    def stride(self) -> int:
        """Epochs from one measurement on validation to the next; the last epoch is always measured."""
        return 1 if self.patience is not None else max(1, math.ceil(self.epochs / self.judgings))
