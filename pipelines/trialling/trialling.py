"""Trials of a protocol: every fold is trained once, its settings judged, one of them chosen, and only then a test is read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featurecache.errors import RunError
from featurecache.files import json_bytes, write_atomic
from featurecache.metrics import primary, score
from featurecache.runs import RECORD, write_record
from featurecache.sources.cached import CachedSource
from heads import HEADS, HeadSpec
from heads._checkpoint import build_head
from pipelines._evaluation import evaluate, write_predictions
from pipelines.protocols import Fold, Judge, Part, Plan, Trial
from pipelines.training.cells import Cell
from pipelines.training.outputs import outputs_of_all
from pipelines.training.problem import Problem, converges
from pipelines.training.selection import selected
from pipelines.training.settings import Training
from pipelines.training.training import Trained, describe_standardisation, train_cells

OF_THE_LOOP = ("momentum", "batch_size", "optimizer", "schedule")
"""What the heads of one read share; settings that differ in it are trained one after the other."""
OF_THE_CELL = ("lr", "weight_decay")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Work:
    """One head on the trials of one store."""

    title: str
    """Of the store, as tables tell it."""
    head: str
    plan: Plan
    cells: Sequence[Cell]
    training: Training
    folder: Path

    @property
    def arrays(self) -> tuple[str, ...]:
        """Arrays that some cell reads."""
        return tuple(dict.fromkeys(name for cell in self.cells for name in cell.arrays))

    def done(self, trial: Trial) -> bool:
        """Return whether the trial has its record."""
        return (self.folder / trial.name / RECORD).exists()


def check_arrays(works: Sequence[Work]) -> None:
    """Refuse to mix trials that read one array with trials that read another, as versions before "last" was the embedding did.

    Raises:
        RunError: names both, and the way out.
    """
    for work in works:
        known = [list(cell.arrays) for cell in work.cells]
        for trial in filter(work.done, work.plan.trials):
            read = json.loads((work.folder / trial.name / RECORD).read_text()).get("arrays")
            if read is not None and read not in known:
                raise RunError(
                    f"{work.folder / trial.name} read {', '.join(read)}, and {work.head} reads {', '.join(known[0])} now. Give "
                    "another --out, or the --layers of that run."
                )


def describe_arrays(works: Sequence[Work]) -> list[str]:
    """Return which arrays each head reads of which store, one line a store, heads that read the same together."""
    lines = []
    for title in dict.fromkeys(work.title for work in works):
        heads: dict[str, list[str]] = {}
        for work in (work for work in works if work.title == title):
            arrays = [name.removeprefix("layers/") for name in work.arrays]
            words = ", ".join(arrays) if len(arrays) < 4 else f"{arrays[0]} to {arrays[-1]} ({len(arrays)} arrays)"
            heads.setdefault(words, []).append(work.head)
        said = [f"{words} by {', '.join(found)}" for words, found in heads.items()]
        lines.append(f"read of {title}: {'; '.join(said)}")
    return lines


def carry_out(work: Work) -> Iterator[Trial]:
    """Finish every trial that is not; yields each when its record is written.

    Folds that only judge come first: what they say is kept as numbers, so that a stopped run trains none of them twice.

    Raises:
        RunError: every setting of a fold diverged.
    """
    waiting = [trial for trial in work.plan.trials if not work.done(trial)]
    own = {trial.fold.name for trial in waiting}
    for fold, judges in _elsewhere(waiting, own).values():
        if lacking := [judge for judge in judges if not _kept(work, judge).exists()]:
            _judge(work, train_fold(fold, work), lacking)
    for name in dict.fromkeys(trial.fold.name for trial in waiting):
        mine = [trial for trial in waiting if trial.fold.name == name]
        started = time.perf_counter()
        trained = train_fold(mine[0].fold, work)
        _judge(work, trained, [judge for trial in mine for judge in trial.judges if judge.fold.name == name])
        seconds = time.perf_counter() - started
        for trial in mine:
            _measure(work, trial, chosen(work, trial, trained), trained, seconds)
            yield trial


def _elsewhere(trials: Sequence[Trial], own: set[str]) -> dict[str, tuple[Fold, list[Judge]]]:
    """Return the folds that only judge, by name, each with its judges, once each."""
    found: dict[str, tuple[Fold, list[Judge]]] = {}
    for judge in (judge for trial in trials for judge in trial.judges):
        if judge.fold.name not in own:
            judges = found.setdefault(judge.fold.name, (judge.fold, []))[1]
            judges += [judge] if judge.name not in {other.name for other in judges} else []
    return found


def cells_in(fold: Fold, cells: Sequence[Cell]) -> list[tuple[Cell, dict[str, Any]]]:
    """Return every cell with each setting that the fold draws, and what the loop is told of it."""
    found = []
    for setting in fold.settings or ({},):
        loop = {name: setting[name] for name in OF_THE_LOOP if name in setting}
        for cell in cells:
            values = {name: setting[name] for name in OF_THE_CELL if name in setting}
            values.setdefault("lr", cell.lr * setting.get("lr_factor", 1.0))
            number = {"hparams_seed": setting["hparams_seed"], **values, **loop} if setting else {}
            seed = cell.seed + setting.get("seed", fold.seed)
            found.append((replace(cell, **values, seed=seed, named={**cell.named, **number}), loop))
    return found


def train_fold(fold: Fold, work: Work) -> list[Trained]:
    """Train every setting of a fold; those that share a loop are one stack, from one read."""
    asked = cells_in(fold, work.cells)
    kinds: dict[str, list[int]] = {}
    for number, (_, loop) in enumerate(asked):
        kinds.setdefault(json.dumps(loop, sort_keys=True), []).append(number)
    views = fold.train.store.header.views if work.training.views == "all" else 1
    train = source_of(fold.train, work.arrays, views)
    validation = source_of(fold.validation, work.arrays) if fold.validation is not None else None
    standardised_by = _standardisation_rows(fold, work)
    found: dict[int, Trained] = {}
    for kind, numbers in kinds.items():
        training = replace(work.training, data_seed=work.training.data_seed + fold.seed, quiet=True, **json.loads(kind))
        cells = [_decide_convergence(asked[number][0], work, fold) for number in numbers]
        trained = train_cells(cells, train, validation, training, standardise_by=standardised_by)
        found |= dict(zip(numbers, trained, strict=True))
    return [found[number] for number in range(len(asked))]


def _decide_convergence(cell: Cell, work: Work, fold: Fold) -> Cell:
    """Return the cell, marked where its head ends at its optimum: rows are few, and neither user nor protocol says how to step."""
    drawn = {name for setting in fold.settings for name in setting} & {"lr", "lr_factor", "weight_decay", *OF_THE_LOOP}
    problem = Problem.of(source_of(fold.train, ()))
    return replace(cell, converge=not drawn and converges(cell, problem, work.training, len(fold.train.rows)))


def _standardisation_rows(fold: Fold, work: Work) -> CachedSource | None:
    return None if fold.standardise_by is None else source_of(fold.standardise_by, work.arrays)


def source_of(part: Part, arrays: Sequence[str], views: int = 1) -> CachedSource:
    """Return the rows of a part as batches."""
    return CachedSource(part.store, arrays, part.rows, views=views)


def _kept(work: Work, judge: Judge) -> Path:
    return work.folder / "judged" / f"{judge.fold.name}--{judge.name}.json"


def _judge(work: Work, trained: Sequence[Trained], judges: Sequence[Judge]) -> None:
    """Write how good every setting is on the rows of each judge; null where it diverged."""
    for judge in {judge.name: judge for judge in judges}.values():
        source, task = source_of(judge.part, work.arrays), judge.part.store.header.task
        outputs, targets = outputs_of_all([one.head for one in trained], source, work.training.device)
        values = [score(said.numpy(), targets.numpy(), task)[0] for said in outputs]
        lines = [None if one.member.diverged else value for one, value in zip(trained, values, strict=True)]
        path = _kept(work, judge)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json_bytes(lines))


def standings(work: Work, trial: Trial, trained: Sequence[Trained]) -> list[float]:
    """Return what every setting is chosen by; not a number where it diverged or nothing was measured."""
    if not trial.judges:
        return [one.member.best[0] if len(one.member.best) == 2 else float("nan") for one in trained]
    said = [json.loads(_kept(work, judge).read_text()) for judge in trial.judges]
    return [float(x) for x in np.mean([[float("nan") if v is None else v for v in one] for one in said], axis=0)]


def chosen(work: Work, trial: Trial, trained: Sequence[Trained]) -> Trained:
    """Return the head of the setting that is best where the trial chooses; no test row is known here.

    Raises:
        RunError: every setting diverged.
    """
    if not trial.judges:
        return selected(trained)[0]
    groups: dict[Any, list[int]] = {}
    for number, one in enumerate(trained):
        groups.setdefault(one.cell.setting, []).append(number)
    values = standings(work, trial, trained)
    means = {name: float(np.mean([values[number] for number in numbers])) for name, numbers in groups.items()}
    alive = {name: mean for name, mean in means.items() if np.isfinite(mean)}
    if not alive:
        raise RunError(f"{trial.name}: every setting diverged, so there is no head to keep. Give a lower --lr.")
    return trained[groups[max(alive, key=lambda name: alive[name])][0]]


def _measure(work: Work, trial: Trial, best: Trained, trained: Sequence[Trained], seconds: float) -> None:
    """Measure the chosen head on the tests, and write what the trial came to."""
    folder, device = work.folder / trial.name, work.training.device
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {}
    for name, part in trial.tests.items():
        source, header = source_of(part, best.cell.arrays), part.store.header
        head = best.head if header.class_names == trial.fold.train.store.header.class_names else rebuilt(best, source)
        metrics[name], logits = evaluate(head.to(device), source, header.task, device)
        (folder / name).mkdir(exist_ok=True)
        write_predictions(folder / name, source, logits)
    task, fold = trial.fold.train.store.header.task, trial.fold
    values = standings(work, trial, trained)
    candidates = [
        {**one.cell.named, "seed": one.cell.seed, "value": value if np.isfinite(value) else None}
        for one, value in zip(trained, values, strict=True)
    ]
    write_record(folder, {
        "trial": trial.name, "labels": dict(trial.labels), "head": work.head, "arrays": list(best.cell.arrays),
        "setting": {**best.cell.named, "seed": best.cell.seed}, "selected_by": [judge.name for judge in trial.judges]
        or [f"val {primary(task)}"], "candidates": candidates, "best_epoch": best.member.best_epoch, "metrics": metrics,
        "rows": {"train": len(fold.train.rows), "val": len(fold.validation.rows) if fold.validation else 0,
                 **{name: len(part.rows) for name, part in trial.tests.items()}},
        "still_improving": best.member.still_improving, "standardised_by": describe_standardisation(
            len((fold.standardise_by or fold.train).rows), best.spec),
        "parameters": best.parameters[0], "trained_parameters": best.parameters[1], "closed_form": dict(best.solved),
        "seconds_of_the_fold": seconds,
    })  # fmt: skip


def rebuilt(best: Trained, source: CachedSource) -> nn.Module:
    """Return the head with the values it has learnt, for the classes of another source."""
    other = Problem.of(source).spec(best.cell, {})
    spec = replace(best.spec, num_classes=other.num_classes, constants=other.constants)
    options = {**best.cell.options, **getattr(best.head, "travelling", {})}
    with torch.random.fork_rng(devices=[]):  # the start that is drawn here is overwritten
        head = build_head(best.cell.head, spec, options)
    head.load_state_dict(best.head.state_dict())
    return head.eval()


def speaks_of_classes(cell: Cell, problem: Problem) -> bool:
    """Return whether what the head learns belongs to its classes, so that it cannot be asked for others.

    A head that can has arrays of the classes to read, and values whose shapes do not depend on how many there are.
    """
    spec = problem.spec(cell, {})
    if not getattr(HEADS.load(cell.head), "CONSTANTS", ()) or spec.num_classes < 2:
        return True
    return _shapes(cell, spec) != _shapes(cell, _with_one_class_less(spec))


def _with_one_class_less(spec: HeadSpec) -> HeadSpec:
    count = spec.num_classes
    constants = {k: v.narrow(-3, 0, count - 1) if v.shape[-3] == count else v for k, v in spec.constants.items()}
    return replace(spec, num_classes=count - 1, constants=constants)


def _shapes(cell: Cell, spec: HeadSpec) -> Mapping[str, torch.Size]:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        head = build_head(cell.head, spec, cell.options)
    return {name: value.shape for name, value in head.state_dict().items()}
