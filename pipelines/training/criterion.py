"""An objective in a training: what it says of a batch, what of it learns, and what it has to tell of the rows behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from featurecache.features import FeatureBatch
from featurecache.sources import ParameterGroup
from pipelines.objectives import LearningObjective, Objective
from pipelines.training.distributed import Ranks
from pipelines.training.stack import Stack


class Criterion:
    """Losses of the heads of a stack.

    An objective that learns may compare the rows of a batch with each other: several processes then bring theirs together,
    and each computes the loss of all of them, of which it adds its share.
    """

    def __init__(self, objective: Objective, ranks: Ranks) -> None:
        self.objective, self.ranks = objective, ranks
        self.learning = objective if isinstance(objective, LearningObjective) else None
        self.together = self.learning is not None and ranks.count > 1
        """Whether a process takes part in steps of which it has no row."""
        self.sums: dict[str, Tensor] = {}
        """Name of a part of the loss -> its sum over the rows since it was told last."""

    def groups(self) -> list[ParameterGroup]:
        """Return the values of the objective that learn."""
        return self.learning.parameter_groups() if self.learning else []

    def losses(self, stack: Stack, batch: FeatureBatch, whole: int, share: float, step: int) -> tuple[Tensor, Tensor]:
        """Return ((M,) losses as they are told, the same as they are added to the gradient) of a part of a step.

        `whole` is the number of its rows in all processes, `share` what part of the step's rows is here.
        """
        if len(stack) > 1:
            found = torch.vmap(lambda one: self.objective({"logits": one}, batch).total)(stack(batch.arrays))
            return found, found * share
        rests = self.learning is not None and self.learning.detach_student(step)
        if rests:
            batch = replace(batch, arrays={name: values.detach() for name, values in batch.arrays.items()})
        logits = stack(batch.arrays)[0]
        outputs = {**batch.arrays, "logits": logits.detach() if rests else logits}
        weight = share
        if self.together:
            sharers = min(self.ranks.count, whole)
            weight = 1 / sharers if len(batch) else 0.0
            outputs, batch = self._gathered(outputs, batch, whole, sharers)
        total, parts = self.objective(outputs, batch)  # gathered rows are all rows, in every process
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach() * len(batch)
        return total[None], total[None] * weight

    def _gathered(
        self, outputs: Mapping[str, Tensor], batch: FeatureBatch, whole: int, sharers: int
    ) -> tuple[dict[str, Tensor], FeatureBatch]:
        """Return outputs and batch of all processes; sample ids, which no objective reads, are left out."""
        every = {name: self.ranks.gathered(values, whole, sharers) for name, values in sorted(outputs.items())}
        arrays = {name: values for name, values in every.items() if name != "logits"}
        rows = self.ranks.gathered(torch.from_numpy(batch.rows).to(batch.targets.device), whole, 1)
        targets = self.ranks.gathered(batch.targets, whole, 1)
        return every, FeatureBatch(rows.cpu().numpy(), (), targets, arrays)

    def told(self, rows: int) -> dict[str, float]:
        """Return the mean of every part over so many rows, those since it was told last, and begin anew."""
        found = {f"train_{name}": float(value) / rows for name, value in self.sums.items()}
        self.sums = {}
        return found

    def state(self) -> dict[str, Tensor]:
        """Return copies of the values of the objective."""
        values: Any = self.objective
        return {name: value.detach().clone() for name, value in values.state_dict().items()} if self.learning else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set what `state` returned."""
        values: Any = self.objective
        if self.learning:
            values.load_state_dict(state)
