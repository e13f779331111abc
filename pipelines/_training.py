"""Heads from features: build, solve where there is a closed form, train; the act that every flow of stage two shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import StoreContentsError
from featurecache.features import Task
from featurecache.sources import FeatureSource, Order
from featurecache.sources.cached import CachedSource
from featurecache.sources.staged import staged
from heads import HEADS, ClosedForm, HeadSpec
from heads._checkpoint import build_head, refusals
from pipelines._cells import Cell, Settings
from pipelines._fitting import Recipe, fit
from pipelines._optimizers import Rule
from pipelines._rows import class_weights
from pipelines._schedules import Schedule
from pipelines._stack import Member
from pipelines.objectives.cross_entropy import CrossEntropy
from pipelines.objectives.cross_entropy import build as cross_entropy

LEAST_EPOCHS, LEAST_STEPS = 50, 1000
"""Of a training whose length nobody said: few rows make few steps an epoch, and a head that is far from its optimum."""
SOLVING_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class Training:
    """How heads are trained; the configs of the verbs that train extend it."""

    head: str = "linear"
    """Which head to train; `featurecache list heads` names them."""
    layers: str | None = None
    """Layers the head reads: last, an index, indices such as 0,3,6-11, embedding, mean, or concat; default: the head's own."""
    tokens: str = "auto"
    """Kinds of token joined by +, of those in the store; auto is cls, else mean."""
    head_option: Mapping[str, Any] = field(default_factory=dict)
    """Option of the head k=v, e.g. start=published; may be given several times."""
    epochs: int | None = None
    """Passes over the training rows; default: as many as make 1000 steps, but at least 50."""
    lr: float | None = None
    """Learning rate at the start; default: the head's own."""
    weight_decay: float = 0.01
    """Decay of the values, decoupled from the gradient under adamw."""
    batch_size: int = 256
    """Rows a step."""
    optimizer: Rule = "adamw"
    """Rule of the steps."""
    momentum: float = 0.9
    """Momentum of sgd."""
    schedule: Schedule = "cosine"
    """Learning rate over the steps: half a cosine to zero, constant, a cosine that changes between epochs, or CoOp's."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises to its base."""
    warmup_lr: float = 1e-5
    """Learning rate of the first epoch of the schedule coop."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh classes by the inverse of their frequency among the training rows."""
    standardise: bool | None = None
    """Subtract the mean of the training rows and divide by their standard deviation; default: unless the head reads raw features."""
    views: Literal["all", "clean"] = "all"
    """Views that training draws from, one a row and step, where the store has several; measuring uses the clean one."""
    order: Literal["auto", "shuffled", "blocks"] = "auto"
    """Order of the rows: a new permutation every epoch, or permuted blocks for stores larger than memory; auto decides by size."""
    seed: int = 0
    """Seed of the head's start and of dropout."""
    data_seed: int = 0
    """Seed of the row order."""
    device: str = "cpu"
    """Device to train on: cpu, cuda, cuda:1, auto."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        check(
            (self.epochs is None or self.epochs >= 0, f"epochs must not be negative, got {self.epochs}"),
            (self.lr is None or 0 < self.lr < math.inf, f"lr must be positive and finite, got {self.lr}"),
            (
                0 <= self.weight_decay < math.inf,
                f"weight_decay must be finite and not negative, got {self.weight_decay}",
            ),
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
            (0 <= self.momentum < 1, f"momentum must lie in [0, 1), got {self.momentum}"),
            (self.warmup_epochs >= 0, f"warmup_epochs must not be negative, got {self.warmup_epochs}"),
            (0 < self.warmup_lr < math.inf, f"warmup_lr must be positive and finite, got {self.warmup_lr}"),
            (0 <= self.label_smoothing < 1, f"label_smoothing must lie in [0, 1), got {self.label_smoothing}"),
        )

    def settings(self) -> Settings:
        """Return what the cells of a sweep share."""
        return Settings(
            head=self.head, options=self.head_option, layers=self.layers, tokens=self.tokens, lr=self.lr,
            weight_decay=self.weight_decay, seed=self.seed,
        )  # fmt: skip

    def recipe(self, rows: int, order: Order) -> Recipe:
        """Return how the loop is to go over that many training rows."""
        return Recipe(
            epochs=self.passes(rows), batch_size=self.batch_size, optimizer=self.optimizer, momentum=self.momentum,
            schedule=self.schedule, warmup_epochs=self.warmup_epochs, warmup_lr=self.warmup_lr, order=order,
            data_seed=self.data_seed, device=self.device, quiet=self.quiet,
        )  # fmt: skip

    def passes(self, rows: int) -> int:
        """Return the epochs over that many training rows."""
        if self.epochs is not None:
            return self.epochs
        return max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / math.ceil(max(rows, 1) / self.batch_size)))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Problem:
    """What heads are built for: the arrays that a source offers, and what they are to say of them."""

    shapes: Mapping[str, tuple[int, ...]]
    """Array name -> shape of a row."""
    num_classes: int
    task: Task
    constants: Mapping[str, Tensor]
    """Arrays of the classes."""

    @classmethod
    def of(cls, source: CachedSource) -> Problem:
        """Return the problem of a store."""
        header = source.store.header
        return cls(
            shapes={spec.name: spec.tail for spec in header.arrays}, num_classes=max(1, len(header.class_names)),
            task=header.task, constants=source.constants,
        )  # fmt: skip

    def spec(self, cell: Cell, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> HeadSpec:
        """Return what the head of a cell is built for.

        Raises:
            StoreContentsError: the head needs an array of the classes that is not there.
        """
        needed = getattr(HEADS.load(cell.head), "CONSTANTS", ())
        lacking = [name for name in needed if name not in self.constants]
        if lacking:
            raise StoreContentsError(
                f"the head {cell.head} needs {', '.join(lacking)}, and the store holds no such array of the classes. It is "
                "for models with a text side: extract such a model with --prompts, or add what is missing with --extend."
            )
        return HeadSpec(
            shapes={name: self.shapes[name] for name in cell.arrays}, num_classes=self.num_classes, task=self.task,
            combine=cell.combine, statistics={name: statistics[name] for name in cell.arrays if statistics},
            constants={name: self.constants[name] for name in needed},
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class Trained:
    """A cell that is trained: its head holds the values that were best on validation."""

    cell: Cell
    spec: HeadSpec
    member: Member
    solved: Mapping[str, float]
    """What a closed form chose."""

    @property
    def head(self) -> nn.Module:
        """The head in eval mode."""
        return self.member.head

    @property
    def parameters(self) -> tuple[int, int]:
        """Numbers of the head, and those of them that are trained."""
        sizes = [(p.numel(), p.numel() * p.requires_grad) for p in self.head.parameters()]
        return sum(size for size, _ in sizes), sum(size for _, size in sizes)


def standardises(cell: Cell, training: Training) -> bool:
    """Return whether the head of a cell is given standardised features."""
    return training.standardise is not False and getattr(HEADS.load(cell.head), "STANDARDISED", True)


def problems_of(cells: Sequence[Cell], problem: Problem, training: Training) -> list[str]:
    """Return every reason why the cells cannot be trained on such a source, each once."""
    found: list[str] = []
    for cell in cells:
        found += refusals(cell.head, problem.spec(cell, {}), cell.options)
        if training.standardise and not getattr(HEADS.load(cell.head), "STANDARDISED", True):
            found.append(f"the head {cell.head} reads features as they are: --standardise does not apply")
    classes = problem.task == "classification"
    need = f"classes, but this is a {problem.task} task"
    if not classes and training.class_weights != "none":
        found.append(f"class_weights {training.class_weights} needs {need}")
    if not classes and training.label_smoothing:
        found.append(f"label_smoothing needs {need}")
    return list(dict.fromkeys(found))


def learn(cells: Sequence[Cell], problem: Problem) -> bool:
    """Return whether some cell learns from training rows; a zero-shot head does not."""
    for cell in cells:
        with torch.device("meta"):
            head = build_head(cell.head, problem.spec(cell, {}), cell.options)
        if isinstance(head, ClosedForm) or any(p.requires_grad for p in head.parameters()):
            return True
    return False


def objective_of(training: Training, train: CachedSource) -> CrossEntropy:
    """Return the likelihood of the labels, with the weights and the smoothing that are asked for."""
    weights = class_weights(train) if training.class_weights == "balanced" else None
    task = train.store.header.task
    return cross_entropy(task, label_smoothing=training.label_smoothing, class_weights=weights).to(training.device)


def train_cells(
    cells: Sequence[Cell],
    train: CachedSource,
    validation: CachedSource | None,
    training: Training,
    *,
    checkpoint: Path | None = None,
) -> list[Trained]:
    """Train every cell from one read of the training rows, each keeping its best values on validation.

    A cell ends as it would alone. torch's own generator is left as it was. With `checkpoint`, a stopped training goes on.
    """
    problem = Problem.of(train)
    statistics = train.statistics() if any(standardises(cell, training) for cell in cells) else {}
    specs = [problem.spec(cell, statistics if standardises(cell, training) else {}) for cell in cells]
    order: Order = training.order if training.order != "auto" else "shuffled" if train.fits_memory() else "blocks"
    recipe = training.recipe(len(train), order)
    with torch.random.fork_rng():
        members = [_started(cell, spec) for cell, spec in zip(cells, specs, strict=True)]
        solved = _solve(cells, [member.head for member in members], train)
        feeds: Mapping[str, FeatureSource | None] = {"train": train, "val": validation}
        if recipe.epochs and any(p.requires_grad for member in members for p in member.head.parameters()):
            held = {split: source for split, source in (("train", train), ("val", validation)) if source is not None}
            feeds = {"val": None, **staged(held, training.device)}
        rows = feeds["train"]
        assert rows is not None
        fit(members, rows, feeds["val"], objective_of(training, train), recipe, problem.task, checkpoint=checkpoint)
    return [Trained(*parts) for parts in zip(cells, specs, members, solved, strict=True)]


def _started(cell: Cell, spec: HeadSpec) -> Member:
    torch.manual_seed(cell.seed)
    head = build_head(cell.head, spec, cell.options)
    return Member(head, cell.lr, cell.weight_decay, cell.kind, torch.get_rng_state())


def _solve(cells: Sequence[Cell], heads: Sequence[nn.Module], train: CachedSource) -> list[Mapping[str, float]]:
    """Solve the closed forms, each once: cells of one kind have the same."""
    solved: dict[Any, tuple[dict[str, Tensor], Mapping[str, float]]] = {}
    firsts: dict[Any, list[int]] = {}
    for number, cell in enumerate(cells):
        if isinstance(heads[number], ClosedForm) and cell.kind not in solved:
            solved[cell.kind] = ({}, {})
            firsts.setdefault((cell.head, cell.arrays, cell.combine), []).append(number)
    for (head, arrays, _), numbers in firsts.items():
        batches = of_arrays(train, arrays).walk(SOLVING_BATCH)
        together = getattr(HEADS.load(head), "solve_together", None)
        before = [{name: value.clone() for name, value in heads[number].state_dict().items()} for number in numbers]
        if together is not None and len(numbers) > 1:
            chosen = together([heads[number] for number in numbers], batches)
        else:
            chosen = [heads[number].solve(batches) for number in numbers]  # type: ignore[operator]
        for number, old, choice in zip(numbers, before, chosen, strict=True):
            solved[cells[number].kind] = (_changed(old, heads[number].state_dict()), choice)
    for cell, head in zip(cells, heads, strict=True):
        if cell.kind in solved:
            head.load_state_dict(solved[cell.kind][0], strict=False)
    return [solved[cell.kind][1] if cell.kind in solved else {} for cell in cells]


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in after.items() if not torch.equal(value, before[name])}


def of_arrays(source: CachedSource, arrays: Sequence[str]) -> CachedSource:
    """Return the same rows and views of other arrays of the store."""
    return CachedSource(source.store, arrays, source.rows, views=source.views)


def resolved(training: Training, rows: int) -> Training:
    """Return the training with its length said, as a run is to record it."""
    return replace(training, epochs=training.passes(rows))
