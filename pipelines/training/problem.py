"""What heads are built for, and whether they can be, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featurecache.errors import ConfigError, StoreContentsError
from featurecache.features import Task
from featurecache.sources.cached import CachedSource
from heads import HEADS, ClosedForm, HeadSpec
from heads._checkpoint import build_head, refusals
from heads._published import Published
from pipelines.training.cells import Cell
from pipelines.training.settings import Training

STEPPED = {"lr", "weight_decay", "momentum", "batch_size", "optimizer", "schedule"}
"""What a sweep or a protocol sets of the steps of a cell."""


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

    def spec(
        self,
        cell: Cell,
        statistics: Mapping[str, tuple[Tensor, Tensor]],
        *,
        targets: tuple[Tensor, Tensor] | None = None,
        converge: bool = False,
    ) -> HeadSpec:
        """Return what the head of a cell is built for; `targets` and `converge` as in `HeadSpec`.

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
            constants={name: self.constants[name] for name in needed}, target_statistics=targets, converge=converge,
        )  # fmt: skip


def standardises(cell: Cell, training: Training) -> bool:
    """Return whether the head of a cell is given standardised features."""
    return training.standardise is not False and getattr(HEADS.load(cell.head), "STANDARDISED", True)


def problems_of(
    cells: Sequence[Cell], problem: Problem, training: Training, published: Published | None = None
) -> list[str]:
    """Return every reason why the cells cannot be trained on such a source, each once."""
    found: list[str] = []
    for cell in cells:
        found += refusals(cell.head, problem.spec(cell, {}), cell.options, published)
        if training.standardise and not getattr(HEADS.load(cell.head), "STANDARDISED", True):
            found.append(f"the head {cell.head} reads features as they are: --standardise does not apply")
    if cells and not any(_steps(cell, problem) for cell in cells):
        solved = ", ".join(sorted({cell.head for cell in cells}))
        for name, given in (
            ("class_weights", training.class_weights != "none"),
            ("label_smoothing", training.label_smoothing),
        ):
            if given:
                found.append(
                    f"{name} changes the loss of heads that are trained by steps, and {solved} is solved. Leave it out"
                )
    classes = problem.task == "classification"
    need = f"classes, but this is a {problem.task} task"
    if not classes and training.class_weights != "none":
        found.append(f"class_weights {training.class_weights} needs {need}")
    if not classes and training.label_smoothing:
        found.append(f"label_smoothing needs {need}")
    return list(dict.fromkeys(found))


def converges(cell: Cell, problem: Problem, training: Training, rows: int) -> bool:
    """Return whether a head is solved instead of being trained by steps: rows are few, and nothing is said of the steps."""
    if (
        rows > getattr(HEADS.load(cell.head), "CONVERGES", 0)
        or not training.leaves_steps_open
        or STEPPED & cell.named.keys()
    ):
        return False
    return _steps(cell, problem) and not _steps(replace(cell, converge=True), problem)


def learn(cells: Sequence[Cell], problem: Problem) -> bool:
    """Return whether some cell learns from training rows; a zero-shot head does not."""
    for cell in cells:
        with torch.device("meta"):
            head = build_head(cell.head, problem.spec(cell, {}), cell.options)
        if isinstance(head, ClosedForm) or any(p.requires_grad for p in head.parameters()):
            return True
    return False


def _steps(cell: Cell, problem: Problem) -> bool:
    """Return whether the head of a cell has values that steps change; one that cannot be built is refused elsewhere."""
    try:
        with torch.device("meta"):
            head = build_head(cell.head, problem.spec(cell, {}, converge=cell.converge), cell.options)
    except ConfigError:
        return True
    return any(p.requires_grad for p in head.parameters())
