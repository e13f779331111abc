"""The objective `concat_probe`: a head on what all teachers say, joined; no image is read, and there is no student."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featurecache.checks import bind_options, check
from featurecache.devices import environment
from featurecache.metrics import primary
from featurecache.runs import write_history, write_record
from featurecache.sources.joined import JoinedSource, taught, teacher_array
from featurecache.sources.statistics import compute_target_statistics, shrink_deviations, statistics_of
from featurecache.sources.teachers import Teacher
from heads import HEADS, ClosedForm, HeadSpec
from heads._checkpoint import build_head, save_head
from pipelines._evaluation import measured, write_rows
from pipelines._roles import record_roles
from pipelines._rows import balanced
from pipelines.objectives import PROBE
from pipelines.objectives.cross_entropy import build as likelihood
from pipelines.students.planning import Opened, rows_of
from pipelines.students.rows import whole_epochs
from pipelines.students.settings import TrainStudentConfig
from pipelines.students.telling import of_teachers
from pipelines.train_head import CHECKPOINT
from pipelines.training.fitting import fit
from pipelines.training.outputs import outputs_of
from pipelines.training.recipe import Recipe
from pipelines.training.reporting import TrainReport
from pipelines.training.stack import Member

WALK = 1024


def probe_head(*, head: str = "ridge") -> str:
    """Return the head of the probe; ridge is solved at once, for every task and all of its strengths.

    Raises:
        UnknownNameError: there is no such head.
    """
    HEADS.load(head)
    return head


def train_probe(config: TrainStudentConfig, opened: Opened) -> TrainReport:
    """Solve or train a head on the concatenated features of the teachers."""
    started, dataset = time.perf_counter(), opened.dataset
    name = probe_head(**bind_options(probe_head, config.objective_option, f"objective {PROBE}"))
    rows = rows_of(dataset, config)
    sources = _sources(config, opened, rows)
    train, task = sources["train"], dataset.task
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        learnt = torch.from_numpy(np.asarray(dataset.table.target)[rows["train"]])
        scaled = compute_target_statistics(learnt) if task == "regression" else None
        spec = HeadSpec(
            shapes={teacher_array(n): (one.width,) for n, one in enumerate(train.teachers)},
            num_classes=max(1, len(dataset.class_names)), task=task,
            statistics=shrink_deviations(statistics_of(train.walk(WALK)), len(train)), target_statistics=scaled,
            converge=len(train) <= getattr(HEADS.load(name), "CONVERGES", 0) and config.lr is None,
        )  # fmt: skip
        member = Member(build_head(name, spec, {}), config.lr or HEADS.load(name).LEARNING_RATE, config.weight_decay)
        solved = _trained(member, sources, rows, config, dataset, scaled)
    metrics = {}
    for split in ("val", "test"):
        if len(sources[split]):
            logits, targets = outputs_of(member.head, sources[split], config.device)
            metrics[split] = measured(logits, targets, np.asarray(dataset.table.group)[rows[split]], task)
            write_rows(config.out, dataset.table, rows[split], logits, dataset.class_names, task)
    save_head(config.out, member.head, name, spec, {})
    write_history(config.out, member.history)
    record = {
        "head": name, "arrays": list(spec.shapes), "combine": spec.combine, "task": task,
        "class_names": list(dataset.class_names), "metrics": metrics, "selected_by": f"val {primary(task)}",
        "best_epoch": member.best_epoch, "still_improving": member.still_improving, "epochs": config.epochs, "closed_form": solved, **_sizes(member.head),
        "rows": {split: len(found) for split, found in rows.items()}, **record_roles(opened.roles),
        "features": {"backbone": {"name": PROBE}, "data": dict(dataset.identity), "origin": {}, "tokens": [], "arrays": []},
        "objective": {"name": PROBE, "options": dict(config.objective_option), "prec": None, "parameters": 0,
                      "mode": "reference" if config.reference else "honest"},
        "teachers": of_teachers(train.teachers, []), "environment": environment(), "seconds": time.perf_counter() - started,
    }  # fmt: skip
    write_record(config.out, record)
    return TrainReport(config.out, record)


def _sources(config: TrainStudentConfig, opened: Opened, rows: Mapping[str, Any]) -> dict[str, JoinedSource]:
    teachers = [Teacher(store, config.teacher_array, opened.dataset) for store in opened.taught(config)]
    for teacher in teachers:
        teacher.stage(np.unique(np.concatenate(list(rows.values()))), "cpu")
    return {split: taught(opened.dataset, found, teachers) for split, found in rows.items()}


def _trained(
    member: Member,
    sources: Mapping[str, JoinedSource],
    rows: Mapping[str, Any],
    config: TrainStudentConfig,
    dataset: Any,
    scaled: tuple[Tensor, Tensor] | None,
) -> dict[str, float]:
    """Solve the head where it has a closed form, and train what of it learns by steps."""
    head = member.head
    chosen_on = sources["val"].walk(WALK) if len(sources["val"]) else None
    solved = head.solve(sources["train"].walk(WALK), chosen_on) if isinstance(head, ClosedForm) else {}
    weights = None
    if config.class_weights == "balanced":
        check(
            (
                dataset.task == "classification",
                f"class_weights balanced needs classes, but this is a {dataset.task} task",
            )
        )
        weights = balanced(np.asarray(dataset.table.target)[rows["train"]], len(dataset.class_names))
    objective = likelihood(
        dataset.task, label_smoothing=config.label_smoothing, class_weights=weights,
        target_scale=None if scaled is None else scaled[1],
    ).to(config.device)  # fmt: skip
    steps, count = config.steps, len(sources["train"])
    recipe = Recipe(
        epochs=config.epochs if steps is None else whole_epochs(steps, count, config.batch_size), batch_size=config.batch_size,
        device=config.device, **config.stepping(),
    )  # fmt: skip
    path = config.out / CHECKPOINT
    fit([member], sources["train"], sources["val"], objective, recipe, dataset.task, checkpoint=path)
    return dict(solved)


def _sizes(head: nn.Module) -> dict[str, int]:
    return {
        "parameters": sum(p.numel() for p in head.parameters()),
        "trained_parameters": sum(p.numel() for p in head.parameters() if p.requires_grad),
    }
