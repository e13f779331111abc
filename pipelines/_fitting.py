"""The only training loop: a stack of M heads of equal shape, fed by one read, each with its own rate and decay.

The best values on validation are kept, and the start counts as a candidate: a head that begins at a closed form never
ends worse than it there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.features import FeatureBatch, Task
from featurecache.metrics import primary, score
from featurecache.progress import Bar, Stopwatch
from featurecache.seeding import seed_of
from featurecache.sources import FeatureSource, Order
from pipelines._optimizers import Rule, optimizer_of
from pipelines.objectives import Objective

EVALUATION_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a stack of heads is trained; what the heads do not share stands in `Member`."""

    epochs: int = 50
    batch_size: int = 256
    optimizer: Rule = "adamw"
    momentum: float = 0.9
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the steps: half a cosine down to zero, or constant."""
    order: Order = "shuffled"
    data_seed: int = 0
    """Fixes the order of the rows of every epoch."""
    device: str = "cpu"
    quiet: bool = True

    def __post_init__(self) -> None:
        check(
            (self.epochs >= 0, f"epochs must not be negative, got {self.epochs}"),
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
            (0 <= self.momentum < 1, f"momentum must lie in [0, 1), got {self.momentum}"),
        )


@dataclass(slots=True, eq=False)
class Member:
    """One head of the stack; after `fit` it holds the values that were best on validation."""

    head: nn.Module
    lr: float
    weight_decay: float = 0.0
    best_epoch: int = 0
    """Epoch after which the kept values were reached; 0 is the start."""
    best: tuple[float, ...] = (-math.inf,)
    """What it was chosen by: the task's metric on validation, then minus its loss."""
    history: list[dict[str, float]] = field(default_factory=list)


class Stack:
    """M heads as one: (M, B, C) logits from one batch; one head is called directly, several through `torch.vmap`."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        self.heads = heads
        self.alone = len(heads) == 1
        if self.alone:
            self.values = {name: p for name, p in heads[0].named_parameters() if p.requires_grad}
            return
        trained = {name for name, p in heads[0].named_parameters() if p.requires_grad}
        stacked, self._buffers = torch.func.stack_module_state(list(heads))
        self.values = {name: p.detach().requires_grad_() for name, p in stacked.items() if name in trained}
        self._fixed = {name: p.detach() for name, p in stacked.items() if name not in trained}
        self._shell = copy.deepcopy(heads[0]).to("meta")

    def __call__(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, ...) -> (M, B, C) logits."""
        if self.alone:
            return self.heads[0](arrays)[None]

        def one(values: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            logits: Tensor = torch.func.functional_call(self._shell, (values, buffers), (arrays,))
            return logits

        return torch.vmap(one, randomness="different")({**self.values, **self._fixed}, self._buffers)

    def train(self, mode: bool) -> None:
        """Set training mode, as in `nn.Module`."""
        for module in [*self.heads, *([] if self.alone else [self._shell])]:
            module.train(mode)

    def of(self, number: int) -> dict[str, Tensor]:
        """Return copies of the trained values of one head."""
        return {name: (p if self.alone else p[number]).detach().clone() for name, p in self.values.items()}


def fit(
    members: Sequence[Member],
    train: FeatureSource,
    validation: FeatureSource | None,
    objective: Objective,
    recipe: Recipe,
    task: Task,
) -> None:
    """Train the members together in place, each keeping its best values on `validation` (None: the last ones).

    The heads must have equal shapes. A head without trainable parameters is only evaluated.
    """
    for member in members:
        member.head.to(recipe.device)
    stack = Stack([member.head for member in members])
    kept = [stack.of(m) for m in range(len(members))]
    _judge(stack, members, kept, validation, task, recipe, epoch=0, losses=None)
    if stack.values and recipe.epochs:
        _train(stack, members, kept, train, validation, objective, recipe, task)
    for member, values in zip(members, kept, strict=True):
        member.head.load_state_dict(values, strict=False)
        member.head.eval()


def _train(
    stack: Stack,
    members: Sequence[Member],
    kept: list[dict[str, Tensor]],
    train: FeatureSource,
    validation: FeatureSource | None,
    objective: Objective,
    recipe: Recipe,
    task: Task,
) -> None:
    rates = torch.tensor([m.lr for m in members], device=recipe.device)
    decays = torch.tensor([m.weight_decay for m in members], device=recipe.device)
    optimizer = optimizer_of(recipe.optimizer, stack.values.values(), rates, decays, recipe.momentum)
    steps = recipe.epochs * math.ceil(len(train) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _factor(recipe.schedule, steps))
    compute = _losses(objective)
    watch = Stopwatch()
    with Bar("training", recipe.epochs * len(train), 0, recipe.quiet) as bar:
        for epoch in range(1, recipe.epochs + 1):
            stack.train(True)
            total = torch.zeros(len(members), device=recipe.device)
            order_seed = seed_of("epoch", recipe.data_seed, epoch)
            for batch in train.batches(recipe.batch_size, order=recipe.order, seed=order_seed):
                batch = on_device(batch, recipe.device)
                losses = compute(stack(batch.arrays), batch)
                optimizer.zero_grad(set_to_none=True)
                losses.sum().backward()
                optimizer.step()
                schedule.step()
                total += losses.detach() * len(batch)
                bar.advance(len(batch), watch)
            _judge(stack, members, kept, validation, task, recipe, epoch=epoch, losses=total / len(train))


def _factor(schedule: str, steps: int) -> Callable[[int], float]:
    if schedule == "constant":
        return lambda step: 1.0
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def _losses(objective: Objective) -> Callable[[Tensor, FeatureBatch], Tensor]:
    """Return (M, B, C) logits, batch -> (M,) losses."""

    def losses(logits: Tensor, batch: FeatureBatch) -> Tensor:
        if len(logits) == 1:
            return objective({"logits": logits[0]}, batch).total[None]
        return torch.vmap(lambda one: objective({"logits": one}, batch).total)(logits)

    return losses


def on_device(batch: FeatureBatch, device: str) -> FeatureBatch:
    """Return the batch with its tensors on `device`."""
    if device == "cpu":
        return batch
    arrays = {name: values.to(device, non_blocking=True) for name, values in batch.arrays.items()}
    return replace(batch, arrays=arrays, targets=batch.targets.to(device, non_blocking=True))


def outputs_of(model: Any, source: FeatureSource, device: str) -> tuple[Tensor, Tensor]:
    """Return (..., N, C) logits of a head or a stack over a source, with the (N, ...) targets, on the CPU."""
    logits, targets = [], []
    with torch.inference_mode():
        for batch in source.batches(EVALUATION_BATCH):
            batch = on_device(batch, device)
            logits.append(model(batch.arrays).detach().float().cpu())
            targets.append(batch.targets.cpu())
    return torch.cat(logits, dim=-2), torch.cat(targets)


def _judge(
    stack: Stack,
    members: Sequence[Member],
    kept: list[dict[str, Tensor]],
    validation: FeatureSource | None,
    task: Task,
    recipe: Recipe,
    *,
    epoch: int,
    losses: Tensor | None,
) -> None:
    """Note where every head stands, and keep the values of those that are better than ever."""
    stack.train(False)
    train_losses = [math.nan] * len(members) if losses is None else losses.tolist()
    judged: list[tuple[float, ...]] = [()] * len(members)
    if validation is not None and len(validation):
        logits, targets = outputs_of(stack, validation, recipe.device)
        judged = [score(one.numpy(), np.asarray(targets), task) for one in logits]
    for number, (member, value) in enumerate(zip(members, judged, strict=True)):
        entry = {"epoch": epoch, "lr": member.lr, "weight_decay": member.weight_decay}
        if losses is not None:
            entry["train_loss"] = train_losses[number]
        if value:
            entry |= {f"val_{primary(task)}": value[0], "val_loss": -value[1]}
        member.history.append(entry)
        if not value or value > member.best:  # not a number is never better
            member.best, member.best_epoch = value or member.best, epoch
            kept[number] = stack.of(number)
