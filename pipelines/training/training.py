"""Heads from features: built, solved where there is a closed form, trained; the act that every flow of stage two shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featurecache.sources import FeatureSource, Order
from featurecache.sources.cached import CachedSource
from featurecache.sources.staged import staged
from featurecache.sources.statistics import compute_target_statistics, shrink_deviations
from featurecache.threads import suited_threads
from heads import HEADS, ClosedForm, HeadSpec
from heads._checkpoint import build_head
from heads._published import Published
from pipelines._rows import class_weights
from pipelines.objectives.cross_entropy import CrossEntropy
from pipelines.objectives.cross_entropy import build as cross_entropy
from pipelines.training.cells import Cell
from pipelines.training.fitting import fit
from pipelines.training.problem import Problem, standardises
from pipelines.training.settings import Training
from pipelines.training.stack import Member

SOLVING_BATCH = 4096


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


def objective_of(training: Training, train: CachedSource, targets: tuple[Tensor, Tensor] | None) -> CrossEntropy:
    """Return the likelihood of the labels, with the weights and the smoothing that are asked for."""
    weights = class_weights(train) if training.class_weights == "balanced" else None
    return cross_entropy(
        train.store.header.task, label_smoothing=training.label_smoothing, class_weights=weights,
        target_scale=None if targets is None else targets[1],
    ).to(training.device)  # fmt: skip


def train_cells(
    cells: Sequence[Cell],
    train: CachedSource,
    validation: CachedSource | None,
    training: Training,
    *,
    standardise_by: CachedSource | None = None,
    checkpoint: Path | None = None,
    published: Published | None = None,
) -> list[Trained]:
    """Train every cell from one read of the training rows, each keeping its best values on validation.

    Features are standardised by the rows of `standardise_by`, whose labels are not looked at; None: by those of `train`.
    Heads begin at `published` values where there are some.
    A cell ends as it would alone. torch's own generator is left as it was. With `checkpoint`, a stopped training goes on.
    """
    problem = Problem.of(train)
    statistics, targets = {}, None
    if any(standardises(cell, training) for cell in cells):
        statistics = shrink_deviations((standardise_by or train).statistics(), len(train))
    if problem.task == "regression":
        targets = compute_target_statistics(train.targets(train.rows))
    specs = [
        problem.spec(cell, statistics if standardises(cell, training) else {}, targets=targets, converge=cell.converge)
        for cell in cells
    ]
    order: Order = training.order if training.order != "auto" else "shuffled" if train.fits_memory() else "blocks"
    recipe = training.recipe(len(train), order)
    values = len(cells) * sum(math.prod(problem.shapes[name]) for name in train.arrays)
    with torch.random.fork_rng(), suited_threads(len(train), values=values):
        members = [_started(cell, spec, published) for cell, spec in zip(cells, specs, strict=True)]
        solved = _solve(cells, [member.head for member in members], train, validation)
        feeds: Mapping[str, FeatureSource | None] = {"train": train, "val": validation}
        if recipe.epochs and any(p.requires_grad for member in members for p in member.head.parameters()):
            held = {split: source for split, source in (("train", train), ("val", validation)) if source is not None}
            feeds = {"val": None, **staged(held, training.device)}
        rows = feeds["train"]
        assert rows is not None
        fit(
            members,
            rows,
            feeds["val"],
            objective_of(training, train, targets),
            recipe,
            problem.task,
            checkpoint=checkpoint,
        )
    return [Trained(*parts) for parts in zip(cells, specs, members, solved, strict=True)]


def _started(cell: Cell, spec: HeadSpec, published: Published | None) -> Member:
    torch.manual_seed(cell.seed)
    head = build_head(cell.head, spec, cell.options)
    if published is not None:
        published.set(cell.head, head)
    return Member(head, cell.lr, cell.weight_decay, cell.kind, torch.get_rng_state())


def _solve(
    cells: Sequence[Cell], heads: Sequence[nn.Module], train: CachedSource, validation: CachedSource | None
) -> list[Mapping[str, float]]:
    """Solve the closed forms, each once: cells of one kind have the same."""
    solved: dict[Any, tuple[dict[str, Tensor], Mapping[str, float]]] = {}
    firsts: dict[Any, list[int]] = {}
    for number, cell in enumerate(cells):
        if isinstance(heads[number], ClosedForm) and cell.kind not in solved:
            solved[cell.kind] = ({}, {})
            firsts.setdefault((cell.head, cell.arrays, cell.combine), []).append(number)
    for (head, arrays, _), numbers in firsts.items():
        batches = of_arrays(train, arrays).walk(SOLVING_BATCH)
        chosen_on = (
            of_arrays(validation, arrays).walk(SOLVING_BATCH) if validation is not None and len(validation) else None
        )
        together = getattr(HEADS.load(head), "solve_together", None)
        before = [{name: value.clone() for name, value in heads[number].state_dict().items()} for number in numbers]
        if together is not None and len(numbers) > 1:
            chosen = together([heads[number] for number in numbers], batches, chosen_on)
        else:
            chosen = [heads[number].solve(batches, chosen_on) for number in numbers]  # type: ignore[operator]
        for number, old, choice in zip(numbers, before, chosen, strict=True):
            solved[cells[number].kind] = (_changed(old, heads[number].state_dict()), choice)
    for cell, head in zip(cells, heads, strict=True):
        if cell.kind in solved:
            head.load_state_dict(solved[cell.kind][0], strict=False)
    return [solved[cell.kind][1] if cell.kind in solved else {} for cell in cells]


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in after.items() if not torch.equal(value, before[name])}


def describe_standardisation(rows: int, spec: HeadSpec) -> dict[str, Any] | None:
    """Return what a record says of the rows that features are standardised by; None where a head reads them as they are."""
    if not spec.statistics:
        return None
    return {
        "rows": rows,
        "labels": "not used",
        "scale": "deviations shrunk towards that of the array, w = N / (N + D)",
    }


def of_arrays(source: CachedSource, arrays: Sequence[str]) -> CachedSource:
    """Return the same rows and views of other arrays of the store."""
    return CachedSource(source.store, arrays, source.rows, views=source.views)
