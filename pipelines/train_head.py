"""The verb `train-head`: train a light head on the features of a store; no image is read, no backbone is built."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.checks import check
from featurecache.constant_features import warn_of_constant_features
from featurecache.devices import environment, resolve_device
from featurecache.errors import FeatureCacheError, RunWriteError, StoreNotFoundError
from featurecache.features import Task
from featurecache.files import write_atomic
from featurecache.metrics import primary
from featurecache.places import Place, absolute
from featurecache.provenance import provenance
from featurecache.repetition import count_warnings
from featurecache.runs import discard, is_done, read_run, recorded_place, write_history, write_record, writing
from featurecache.sources.cached import CachedSource
from featurecache.stores import FeatureStore, open_store, store_exists
from featurecache.threads import heeds_threads, suited_threads
from heads._checkpoint import save_head
from heads._published import Published
from pipelines._arrays import compare_stored
from pipelines._evaluation import evaluate, write_predictions
from pipelines._roles import Roles, read_store_in_roles, record_roles
from pipelines._rows import every_training_row, labelled_rows, trainable
from pipelines._training_rows import write_training_rows
from pipelines.training.cells import Cell, cells_of
from pipelines.training.problem import Problem, converges, learn, problems_of, standardises
from pipelines.training.reporting import TrainReport
from pipelines.training.selection import as_csv, selected, sweep_rows
from pipelines.training.settings import Training
from pipelines.training.training import Trained, describe_standardisation, of_arrays, train_cells

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, kw_only=True)
class TrainHeadConfig(Training):
    """Train a light head on cached features; no image is read and no backbone is built."""

    store: Place
    """Store written by extract-features; s3://bucket/x.zarr and the like are read where they lie."""
    out: Path
    """Run folder to write."""
    sweep: Mapping[str, Any] = field(default_factory=dict)
    """Train one head for every combination from one read, and keep the best on validation: NAME=V1,V2 or FIRST..LAST/COUNT of lr, wd, layer (each: one after the other), token, seed, head, or an option of the head; | where a value has commas; may be given several times."""
    load_published: tuple[str, Path] | None = None
    """lfa FILE: a checkpoint of the code of the paper, whose values the head begins at."""
    refit: bool = False
    """Train what validation chose once more on the rows of train and val together."""
    test_split: str | None = None
    """Split to measure on, e.g. val: rows to choose on are then held out of train; default: test, or val where there is no test."""


@heeds_threads
def run(config: TrainHeadConfig) -> TrainReport:
    """Train, or say that this very run is there already; one that was stopped goes on.

    Raises:
        UnknownNameError, ConfigError, StoreContentsError: refused before anything is written, all problems at once.
        RunError: `out` holds another run (names what differs), or the loss ceased to be a number.
    """
    store = open_store(config.store)
    config = replace(config, device=str(resolve_device(config.device)))
    plan = planned(store, config)
    first = plan.cells[0]
    if not config.sweep:
        config = replace(config, lr=first.lr or None, standardise=standardises(first, config))
    converged = all(cell.converge for cell in plan.cells)
    config = replace(config, epochs=0 if converged else config.passes(len(plan.sources["train"])))
    if is_done(config.out, _wanted(store, plan, config)):
        return TrainReport(config.out, read_run(config.out)[1], repeated=True)
    warn_of_constant_features(store, plan.arrays)
    try:
        with writing(config.out), count_warnings(), suited_threads(store.header.rows):
            return train_head(store, plan, config)
    except RunWriteError:  # there is no room for it now: what is there goes on later
        raise
    except FeatureCacheError:
        discard(config.out)
        raise


def _wanted(store: FeatureStore, plan: Plan, config: TrainHeadConfig) -> dict[str, Any]:
    """Return what makes this run this run."""
    unsaid = [
        "out",
        "quiet",
        "threads",
        "layers",
        "tokens",
        *(() if config.sweep else ("sweep",)),
        *(() if config.refit else ("refit",)),
        *(() if config.load_published else ("load_published",)),
        *(() if config.test_split else ("test_split",)),
    ]
    asked = {name: value for name, value in asdict(config).items() if name not in unsaid}
    return {
        **asked, **_published(config), "arrays": list(plan.arrays), "combine": plan.cells[0].combine,
        "store": recorded_place(config.out, "store", str(config.store), absolute(config.store)),
        "features": {"backbone": dict(store.header.backbone), "data": dict(store.header.dataset)},
        **({"cells": [dict(cell.named) for cell in plan.cells]} if config.sweep else {}),
    }  # fmt: skip


def _published(config: TrainHeadConfig) -> dict[str, Any]:
    return {"load_published": list(map(str, config.load_published))} if config.load_published else {}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """What a run trains on, and what it trains."""

    sources: Mapping[str, CachedSource]
    """Split -> its labelled rows, with the arrays of all cells."""
    cells: Sequence[Cell]
    published: Published | None = None
    """Where the heads begin."""
    roles: Roles | None = None
    """Which splits are measured and chosen on, where these are not test and val."""

    @property
    def arrays(self) -> tuple[str, ...]:
        """Arrays that some cell reads."""
        return self.sources["train"].arrays


def planned(store: FeatureStore, config: TrainHeadConfig) -> Plan:
    """Return what the config asks of the store; nothing is written, and only the row table is read.

    Raises:
        ConfigError: lists every reason why the heads cannot be built, or have nothing to learn from.
        StoreContentsError: the store is unfinished, or lacks what a head is to read.
    """
    store, roles = read_store_in_roles(store, config.test_split)
    header = store.header
    cells = cells_of(config.settings(), config.sweep, header, compare_stored(store))
    arrays = list(dict.fromkeys(name for cell in cells for name in cell.arrays))
    drawn = {"train": header.views if config.views == "all" else 1}
    sources = {
        split: CachedSource(store, arrays, labelled_rows(store, split), views=drawn.get(split, 1))
        for split in ("train", "val", "test")
    }
    problem = Problem.of(sources["train"])
    published = Published.read(*config.load_published) if config.load_published else None
    problems = problems_of(cells, problem, config, published)
    rows = len(sources["train"])
    cells = cells if problems else [replace(cell, converge=converges(cell, problem, config, rows)) for cell in cells]
    learns = bool(problems) or learn(cells, problem)
    choosing = len({cell.setting for cell in cells}) > 1
    check(
        *(trainable(sources["train"]) if learns else ()),
        *((False, problem) for problem in problems),
        (
            not choosing or len(sources["val"]) > 0,
            f"a sweep chooses on validation rows, and {store.path} has none. Give the data a val split, or no sweep",
        ),
        (not config.refit or len(sources["val"]) > 0, f"refit adds the validation rows, and {store.path} has none"),
    )
    return Plan(sources=sources, cells=cells, published=published, roles=roles)


def train_head(store: FeatureStore, plan: Plan, config: TrainHeadConfig) -> TrainReport:
    """Train on the training rows, keep what is best on validation, measure validation and test."""
    started, task, sources, origin = time.perf_counter(), store.header.task, plan.sources, _origin(store)
    trained = train_cells(
        plan.cells,
        sources["train"],
        sources["val"],
        config,
        standardise_by=every_training_row(sources["train"]),
        checkpoint=config.out / CHECKPOINT,
        published=plan.published,
    )
    chosen = selected(trained)
    best = chosen[0]
    held = {split: of_arrays(sources[split], best.cell.arrays) for split in ("val", "test")}
    metrics = {"val": evaluate(best.head, held["val"], task, config.device)[0]} if len(held["val"]) else {}
    final = _refitted(best, store, plan, config) if config.refit else best
    last = "test" if len(held["test"]) else "val"
    if len(held[last]):
        metrics[last], logits = evaluate(final.head, held[last], task, config.device)
        write_predictions(config.out, held[last], logits)
    save_head(config.out, final.head, final.cell.head, final.spec, final.cell.options)
    write_history(config.out, best.member.history)
    ids, learned = store.table().sample_id, {split: plan.sources[split].rows for split in ("train", "val")}
    write_training_rows(config.out, ids, learned, store, best.cell.arrays[0])
    parameters, trained_parameters = final.parameters
    record = {
        "head": best.cell.head, "arrays": list(best.spec.shapes), "combine": best.spec.combine, "task": task,
        "class_names": list(store.header.class_names), "metrics": metrics, "selected_by": f"val {primary(task)}",
        "best_epoch": best.member.best_epoch, "epochs": config.epochs, "still_improving": best.member.still_improving,
        "standardised_by": describe_standardisation(len(every_training_row(sources["train"])), best.spec),
        "closed_form": dict(final.solved),
        "parameters": parameters, "trained_parameters": trained_parameters,
        "rows": {split: len(source) for split, source in sources.items()}, **record_roles(plan.roles),
        "features": {**origin, "arrays": [asdict(store.header.array(name)) for name in best.spec.shapes]}, "environment": environment(),
        **_of_sweep(trained, chosen, sources["test"], task, config), "seconds": time.perf_counter() - started,
    }  # fmt: skip
    write_record(config.out, record)
    return TrainReport(config.out, record)


def _refitted(best: Trained, store: FeatureStore, plan: Plan, config: TrainHeadConfig) -> Trained:
    """Return the chosen cell, trained on train and val for as many epochs as were best."""
    train = plan.sources["train"]
    rows = np.union1d(train.rows, plan.sources["val"].rows)
    both = CachedSource(store, best.cell.arrays, rows, views=train.views)
    again_config = replace(config, epochs=best.member.best_epoch)
    (again,) = train_cells(
        [best.cell], both, None, again_config, standardise_by=every_training_row(train), published=plan.published
    )
    return selected([again])[0]


def _of_sweep(
    trained: Sequence[Trained], chosen: Sequence[Trained], test: CachedSource, task: Task, config: TrainHeadConfig
) -> dict[str, Any]:
    """Write every line of a sweep; return what the record says of it, with the test metric of every repetition."""
    if not config.sweep:
        return {}
    lines = sweep_rows(trained, chosen, task)
    write_atomic(config.out / "sweep.csv", as_csv(lines))
    repeated = []
    for one in chosen:
        found = evaluate(one.head, of_arrays(test, one.cell.arrays), task, config.device)[0] if len(test) else {}
        repeated.append({
            "seed": one.cell.seed, f"val_{primary(task)}": one.member.best[0] if len(one.member.best) == 2 else None,
            f"test_{primary(task)}": found[primary(task)]["value"] if found else None,
        })  # fmt: skip
    return {
        "sweep": {
            "setting": dict(chosen[0].cell.setting),
            "repetitions": repeated,
            "refit": config.refit,
            "cells": lines,
        }
    }


def _origin(store: FeatureStore) -> dict[str, Any]:
    """Return what the features are, and what builds their backbone again ({} where nothing was noted).

    Raises:
        StoreNotFoundError: the store is not there any more.
    """
    if not store_exists(store.path):  # a run that does not know its backbone can predict nothing
        raise StoreNotFoundError(f"{store.path} was removed before the run began.")
    header = store.header
    origin = next((dict(line["origin"]) for line in provenance(store.notes) if "origin" in line), {})
    return {
        "backbone": dict(header.backbone), "data": dict(header.dataset), "origin": origin,
        "tokens": list(header.tokens),
    }  # fmt: skip
