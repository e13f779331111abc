"""The verb `train-student`: train a small backbone guided by cached teachers; the loop, the record and the files of any run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featurecache.checks import check
from featurecache.errors import DivergedError, FeatureCacheError, RunError, UnreadableSampleError
from featurecache.files import write_atomic
from featurecache.metrics import primary
from featurecache.reports import Table
from featurecache.runs import CONFIG, RECORD, discard, is_done, read_run, recorded_place, recorded_stores, write_record
from featurecache.threads import heeds_threads, suited_threads
from pipelines.objectives import PROBE
from pipelines.students.cells import StudentCell, cells_of
from pipelines.students.comparing import Done, cell_lines, chosen, compared, standing, tables
from pipelines.students.guiding import StudentGuide
from pipelines.students.planning import Opened, StudentPlan, check_config, check_objective, planned, rows_of
from pipelines.students.probing import train_probe
from pipelines.students.settings import TrainStudentConfig
from pipelines.train_online import CHECKPOINT, LEFT_OUT, SilentReport, train_online
from pipelines.training.distributed import Ranks, joined
from pipelines.training.reporting import TrainReport
from pipelines.training.selection import as_csv

__all__ = ["TrainStudentConfig", "run"]

UNCOMPARED = ("out", "quiet", "threads", "workers", "decode_threads", "device", "cache", "student_weights")
"""What the config says and does not change a run, or what is compared in another form."""
DIVERGED = ".diverged"
"""Ending of the file that stands for a cell whose loss ceased to be a number."""


@dataclass(frozen=True, slots=True)
class SweepReport(TrainReport):
    """A finished sweep; its folder is the run of the cell that was best on validation."""

    def tables(self) -> list[Table]:
        """Return the results, the paired differences, and the run that was kept."""
        return [*tables(self.record), *super(SweepReport, self).tables()[-1:]]


@heeds_threads
def run(config: TrainStudentConfig) -> TrainReport | SilentReport:
    """Train a student, or every cell of a sweep; go on where a stopped command stands, or say that it is done already.

    Raises:
        FeatureCacheError: refused before anything is written, all problems at once; or the folder is left as it was.
        RunError: `out` holds another run (names what differs), or the loss ceased to be a number.
    """
    with joined(config.device) as (ranks, device):
        config = replace(config, device=device)
        if config.sweep:
            found = _sweep(config, ranks)
        else:
            check_objective(config)
            found = _one(config, Opened.of(config), ranks)
        return found if ranks.first else SilentReport()


def _one(config: TrainStudentConfig, opened: Opened, ranks: Ranks) -> TrainReport:
    """Train one student, or solve one probe."""
    probes = config.named == PROBE
    check_config(config, opened)
    plan = None if probes else planned(config, opened)
    if ranks.by_first(lambda: is_done(config.out, wanted(config, opened, plan))):
        return TrainReport(config.out, read_run(config.out)[1], repeated=True)
    try:
        if plan is None:
            with suited_threads(len(opened.dataset)):  # it reads features alone
                return ranks.by_first(lambda: train_probe(config, opened))
        return train_student(plan, ranks)
    except FeatureCacheError as error:
        if ranks.first and not (config.out / CHECKPOINT).exists():
            discard(config.out)
        if isinstance(error, UnreadableSampleError):
            raise error.explain_skipping(LEFT_OUT) from error
        raise


def wanted(config: TrainStudentConfig, opened: Opened, plan: StudentPlan | None) -> dict[str, Any]:
    """Return what makes this run this run; what it is of several trainings, where there is no plan."""
    unsaid = (*UNCOMPARED, *(() if config.test_split else ("test_split",)))
    asked = {name: value for name, value in asdict(config).items() if name not in unsaid}
    student = {} if plan is None else {
        "precision": plan.online.backbone.identity.get("precision"), "epochs": plan.settings.epochs,
        "features": {"backbone": dict(plan.online.header.backbone), "data": dict(plan.online.header.dataset)},
    }  # fmt: skip
    return {
        **asked, "objective": config.named, "prec": config.weight, "lr": config.rates[0], "backbone_lr": config.rates[1],
        "device": config.device.partition(":")[0], "teacher": recorded_stores(config.out, "teacher", config.teacher),
        "teachers": [dict(one.header.backbone) for one in opened.taught(config)], "data_set": dict(opened.dataset.identity),
        "data": recorded_place(config.out, "data", config.data, opened.dataset.spec),
        **student,
    }  # fmt: skip


def train_student(plan: StudentPlan, ranks: Ranks) -> TrainReport:
    """Train the student on its rows with what its teachers say of them."""
    settings = replace(plan.settings, out=plan.config.out)
    return train_online(plan.online, settings, ranks, StudentGuide(plan, plan.config.out))


def _sweep(config: TrainStudentConfig, ranks: Ranks) -> TrainReport:
    """Train the cells that are not done, choose on validation, and compare what was chosen on the test rows."""
    cells, opened = cells_of(config), Opened.of(config)
    for cell in cells:
        check_config(cell.config, opened)
    choosing = len({(cell.group, cell.setting) for cell in cells}) > len({cell.group for cell in cells})
    check((
        not choosing or len(rows_of(opened.dataset, config)["val"]) > 0,
        f"a sweep chooses on validation rows, and {config.data} has none. Give the data a val split, or one setting",
    ))  # fmt: skip
    if ranks.by_first(lambda: is_done(config.out, wanted(config, opened, None))):
        return SweepReport(config.out, read_run(config.out)[1], repeated=True)
    done = [_cell(cell, opened, ranks) for cell in cells]
    return ranks.by_first(lambda: _concluded(done, config, opened))


def _cell(cell: StudentCell, opened: Opened, ranks: Ranks) -> Done:
    """Train one cell, or take what is there of it."""
    out = cell.config.out
    gone = out.with_name(out.name + DIVERGED)
    if gone.exists():
        return Done(cell, None)
    try:
        return Done(cell, _one(cell.config, opened, ranks).record)
    except DivergedError as error:
        if ranks.first:
            write_atomic(gone, str(error).encode())
        return Done(cell, None)


def _concluded(done: Sequence[Done], config: TrainStudentConfig, opened: Opened) -> TrainReport:
    """Write tables and the run of the best cell.

    Raises:
        RunError: every cell diverged.
    """
    task = opened.dataset.task
    metric = primary(task)
    picked = chosen(done, metric)
    if not picked:
        raise RunError(
            f"the loss of every cell ceased to be a number. Give a lower --lr, or a lower prec: {config.out}"
        )
    found = compared(picked, opened.dataset)
    students = [cells for group, cells in picked.items() if group[0] != PROBE] or list(picked.values())
    best = max(students, key=lambda cells: standing(cells, metric))
    lines = cell_lines(done, picked, metric)
    files = {"sweep": lines, "results": found["results"], "differences": found["differences"]}
    for name, table in files.items():
        write_atomic(config.out / f"{name}.csv", as_csv(table))
    _copy(best[0].cell.config.out, config.out)
    repeated = [
        {
            "seed": one.cell.config.seed,
            **{f"{split}_{metric}": _number(one.value(split, metric)) for split in ("val", "test")},
        }
        for one in best
    ]
    assert best[0].record is not None
    record = {
        **best[0].record, "students": found, "cell": best[0].cell.name,
        "sweep": {"setting": dict(best[0].cell.named), "repetitions": repeated, "refit": False, "cells": lines},
    }  # fmt: skip
    write_record(config.out, record)
    return SweepReport(config.out, record)


def _number(value: float) -> float | None:
    return None if value != value else value


def _copy(run: Path, out: Path) -> None:
    """Copy the files of a run but its config and its record, which are the sweep's."""
    for path in sorted(run.iterdir()):
        if path.is_file() and path.name not in (CONFIG, RECORD):
            shutil.copyfile(path, out / path.name)
