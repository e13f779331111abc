"""The only training loop: heads fed by one read, each with its own rate and decay, and all that learns with them.

Heads of one kind are trained as a stack. The best values on validation are kept, and the start counts as a candidate: a
head that begins at a closed form never ends worse than it there. Where the features learn too (`TrainedSource`), there is
one head, and what was best is kept of both; so it is of an objective that learns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from featurecache.features import FeatureBatch, Task
from featurecache.metrics import primary
from featurecache.progress import Bar, Stopwatch
from featurecache.seeding import seed_of
from featurecache.sources import FeatureSource, TrainedSource
from featurecache.sources.cached import CachedSource
from featurecache.sources.in_memory import InMemory
from featurecache.sources.staged import StagedSource
from featurecache.threads import suited_threads
from pipelines.objectives import Objective
from pipelines.training.criterion import Criterion
from pipelines.training.distributed import ALONE, Ranks
from pipelines.training.judging import Standing, judged
from pipelines.training.optimizers import (
    grouped_optimizer,
    has_gradient,
    optimizer_of,
    set_rates,
    shorten_gradients,
)
from pipelines.training.outputs import on_device
from pipelines.training.recipe import Recipe
from pipelines.training.resuming import Checkpoint
from pipelines.training.schedules import learning_rates
from pipelines.training.stack import Member, Stack, set_random_state, stacked


@dataclass(frozen=True, slots=True)
class Pace:
    """What training took, without measuring; of a training that was gone on with, its last part."""

    steps: int
    seconds: float


def fit(
    members: Sequence[Member],
    train: FeatureSource,
    validation: FeatureSource | None,
    objective: Objective,
    recipe: Recipe,
    task: Task,
    *,
    checkpoint: Path | None = None,
    ranks: Ranks = ALONE,
) -> Pace:
    """Train the members together in place, each keeping its best values on `validation` (None: the last ones).

    A head without trainable parameters is only evaluated. With `checkpoint`, a file, what is there is gone on with, to
    the same end as if nothing had stopped it; the file is gone at the end. With `ranks`, several processes train as one:
    `train` gives each its part of every batch, `validation` all of it, and the first one writes.
    """
    for member in members:
        member.head.to(recipe.device)
    assert len(members) == 1 or not isinstance(train, TrainedSource), "features learn with one head"
    training = _Training(members, train, validation, objective, recipe, task, Checkpoint(checkpoint), ranks)
    with suited_threads(step=step_products(members, train, recipe)):
        training.run()
    return Pace(training.step - training.first_step, training.seconds)


def step_products(members: Sequence[Member], train: FeatureSource, recipe: Recipe) -> float | None:
    """Return how many products a step on features makes, rows times parameters; None where a model makes them from images."""
    if not isinstance(train, CachedSource | InMemory | StagedSource):
        return None
    numbers = sum(p.numel() for member in members for p in member.head.parameters() if p.requires_grad)
    return float(min(recipe.batch_size, len(train)) * numbers)


class _Training:
    """What changes while heads are trained."""

    def __init__(
        self,
        members: Sequence[Member],
        train: FeatureSource,
        validation: FeatureSource | None,
        objective: Objective,
        recipe: Recipe,
        task: Task,
        checkpoint: Checkpoint,
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.members, self.train, self.validation = members, train, validation
        self.criterion = Criterion(objective, ranks)
        self.recipe, self.task, self.checkpoint = recipe, task, checkpoint
        if len(members) == 1 and members[0].random_state is not None:
            set_random_state((members[0].random_state, None))
        self.stacks = stacked(members)
        self.learning = train if isinstance(train, TrainedSource) else None
        self.optimizers = self._optimizers()
        self.kept: list[dict[str, Tensor]] = [{} for _ in members]
        self.kept_source: dict[str, Tensor] = {}
        self.kept_objective: dict[str, Tensor] = {}
        self.epoch, self.rows, self.step = 0, 0, 0
        """Epoch under way (0: none yet), its rows that are behind us, steps made in all."""
        self.totals, self.added = self._zeros(), self._zeros()
        """Losses of the rows since heads were judged last, and of the step under way in this process."""
        device = torch.device(recipe.device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.scale_loss)
        self.first_step, self.seconds = 0, 0.0
        self.in_training: bool | None = None

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros(len(stack), device=self.recipe.device) for stack, _ in self.stacks]

    def _optimizers(self) -> list[tuple[Optimizer, Tensor]]:
        """Return every optimiser with the base rates of its heads or groups."""
        recipe, found = self.recipe, []
        for stack, numbers in self.stacks:
            if stack.values:
                where, exact = recipe.device, torch.float64 if len(numbers) == 1 else torch.float32
                rates = torch.tensor([self.members[n].lr for n in numbers], device=where, dtype=exact)
                decays = torch.tensor([self.members[n].weight_decay for n in numbers], device=where, dtype=exact)
                made = optimizer_of(
                    recipe.optimizer, stack.values.values(), rates, decays, recipe.momentum, recipe.nesterov
                )
                found.append((made, rates))
        for groups in (self.learning.groups() if self.learning else [], self.criterion.groups()):
            if not groups:
                continue
            (member,) = self.members
            made = grouped_optimizer(
                recipe.optimizer, groups, member.lr, member.weight_decay, recipe.momentum, recipe.nesterov
            )
            rates = torch.tensor([member.lr * group.lr_factor for group in groups], dtype=torch.float64)
            found.append((made, rates))
        return found

    def run(self) -> None:
        """Train to the end, or go on to it, and leave the kept values in the heads."""
        epochs = self.recipe.epochs if self.optimizers else 0
        if not self.checkpoint.restore(self):
            self._judge()
            self.epoch = 1
        self.first_step = self.step
        watch, done = Stopwatch(), (self.epoch - 1) * len(self.train) + self.rows
        with Bar("training", epochs * len(self.train), done, self.recipe.quiet) as bar:
            while self.epoch <= epochs and not self._ends():
                for rows in self._pass():
                    bar.advance(rows, watch)
                if self.epoch % self.recipe.stride == 0 or self.epoch == epochs:
                    self._judge()
                    self.totals = self._zeros()
                self.epoch, self.rows = self.epoch + 1, 0
        for member, values in zip(self.members, self.kept, strict=True):
            member.head.load_state_dict(values, strict=False)
        if self.learning:
            self.learning.load(self.kept_source)
        if self.kept_objective:
            self.criterion.load(self.kept_objective)
        self._set_training(False)
        self.checkpoint.remove()

    def _ends(self) -> bool:
        """Return whether no head learns any more: all diverged, or patience is at its end."""
        patience = self.recipe.patience
        waited = self.epoch - 1 - max(member.best_epoch for member in self.members)
        return all(member.diverged for member in self.members) or (patience is not None and waited >= patience)

    def _set_training(self, mode: bool) -> None:
        if mode == self.in_training:
            return  # an epoch may be one small step, and there are many modules
        self.in_training = mode
        for stack, _ in self.stacks:
            stack.train(mode)
        if self.learning:
            self.learning.train(mode)

    def _pass(self) -> Iterator[int]:
        """Make the steps of the epoch under way; yields the rows of every part of a step, over all processes."""
        recipe, size, count = self.recipe, self.recipe.batch_size, len(self.train)
        self._set_training(True)
        part, rows, started = size // recipe.accumulate, self.rows, time.perf_counter()
        seed = seed_of("epoch", recipe.data_seed, self.epoch if recipe.reshuffle else 1)
        batches = self.train.batches(part, order=recipe.order, seed=seed, start=rows)
        while rows < count:
            self.ranks.draw(seed, rows)
            batch, whole = next(batches), min(part, count - rows)
            if len(batch) or self.criterion.together:
                self._add_gradient(on_device(batch, recipe.device), whole, min(size, count - self.rows))
            rows += whole
            if rows == count or rows - self.rows == size:
                self._make_step()
                self.rows = rows
                if self.ranks.first:
                    self.checkpoint.save(self)
            yield whole
        if recipe.device.startswith("cuda"):
            torch.cuda.synchronize()  # what is only asked for has taken no time yet
        self.seconds += time.perf_counter() - started

    def _add_gradient(self, batch: FeatureBatch, whole: int, rows: int) -> None:
        """Add the gradient of a part, of `whole` rows in all processes, of a step of so many `rows`."""
        loss: Tensor | float = 0.0
        share, step = len(batch) / rows, self.rows // self.recipe.batch_size
        for number, (stack, _) in enumerate(self.stacks):
            if stack.values or self.learning:
                losses, weighed = self.criterion.losses(stack, batch, whole, share, step)
                self.added[number] += losses.detach() * len(batch)
                loss = loss + weighed.sum()
        assert isinstance(loss, Tensor)
        self.scaler.scale(loss).backward()

    def _share(self) -> None:
        """Bring together what the processes found in a step."""
        parameters = [
            p for optimizer, _ in self.optimizers for group in optimizer.param_groups for p in group["params"]
        ]
        self.ranks.sum_gradients(parameters, self.recipe.device)
        self.ranks.sum(self.added)
        for total, added in zip(self.totals, self.added, strict=True):
            total += added
            added.zero_()
        if self.learning and self.ranks.count > 1:
            self.ranks.mean(self.learning.averages())

    def _make_step(self) -> None:
        self._share()
        recipe, steps = self.recipe, math.ceil(len(self.train) / self.recipe.batch_size)
        moved = [optimizer for optimizer, _ in self.optimizers if has_gradient(optimizer)]
        if recipe.clip_norm is not None:
            for optimizer in moved:
                self.scaler.unscale_(optimizer)
            for together in [moved] if len(self.members) == 1 else [[optimizer] for optimizer in moved]:
                shorten_gradients(together, recipe.clip_norm)
        for optimizer, base in self.optimizers:
            rates = learning_rates(
                recipe.schedule, base, self.step, steps_per_epoch=steps, epochs=recipe.epochs,
                warmup_epochs=recipe.warmup_epochs, warmup_lr=recipe.warmup_lr, least_lr=recipe.least_lr,
            )  # fmt: skip
            set_rates(optimizer, rates)
            if optimizer in moved:
                self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.step += 1

    def _judge(self) -> None:
        """Note where every head stands, and keep the values of those that are better than ever."""
        self._set_training(False)
        stacks, recipe = [stack for stack, _ in self.stacks], self.recipe
        standings = judged(
            stacks, [len(stack) for stack in stacks], self.validation, self.task, recipe.device, recipe.evaluation_batch
        )
        rows = max(1, len(self.train)) * ((self.epoch - 1) % recipe.stride + 1)
        told = self.criterion.told(rows)
        for (stack, numbers), values, total in zip(self.stacks, standings, self.totals, strict=True):
            losses = (total / rows).tolist()
            for place, number in enumerate(numbers):
                self._note(stack, place, number, values[place], losses[place], told)

    def _note(
        self, stack: Stack, place: int, number: int, value: Standing, loss: float, told: dict[str, float]
    ) -> None:
        member = self.members[number]
        if member.diverged:
            return
        entry = {"epoch": self.epoch, "lr": member.lr, "weight_decay": member.weight_decay}
        if self.epoch:
            entry |= {"train_loss": loss, **told}
        if value:
            entry |= {f"val_{primary(self.task)}": value[0], "val_loss": -value[1]}
        member.history.append(entry)
        if not math.isfinite(loss):
            member.diverged = self.epoch
            return
        if not value or self._is_better(value, member.best):
            member.best, member.best_epoch = value or member.best, self.epoch
            self.kept[number] = stack.of(place)
            if self.learning:
                self.kept_source = self.learning.state()
            self.kept_objective = self.criterion.state()

    def _is_better(self, value: Standing, best: Standing) -> bool:
        """Return whether values are kept instead of the best ones so far: the later of equal ones; never where one is NaN.

        A backbone that is trained grows overconfident: its validation loss rises while its accuracy still does. Of a head on
        few validation rows the loss says more than the accuracy. R2 is the loss in units of the targets' variance.
        """
        by_loss = self.recipe.select == "loss" or (self.recipe.select == "auto" and self.learning is None)
        if by_loss and self.task != "regression":
            value, best = value[1:], best[1:]
        return value >= best
