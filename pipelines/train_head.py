"""The verb `train-head`: train a light head on the features of a store; no image is read, no backbone is built."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from featurecache.checks import check
from featurecache.devices import environment, resolve_device
from featurecache.errors import StoreNotFoundError
from featurecache.files import write_atomic
from featurecache.metrics import primary
from featurecache.places import Place
from featurecache.provenance import provenance
from featurecache.reports import Table
from featurecache.runs import is_done, read_run, write_record, writing
from featurecache.sources import FeatureSource, Order
from featurecache.sources.cached import CachedSource
from featurecache.sources.staged import staged
from featurecache.stores import FeatureStore, open_store, store_exists
from heads import HEADS, ClosedForm, HeadSpec
from heads._checkpoint import build_head, refusals, save_head
from pipelines._arrays import select_arrays
from pipelines._evaluation import evaluate, write_predictions
from pipelines._fitting import Member, Recipe, fit
from pipelines._optimizers import Rule
from pipelines._rows import class_weights, labelled_rows, trainable
from pipelines.objectives.cross_entropy import build as cross_entropy

LEAST_EPOCHS, LEAST_STEPS = 50, 1000
"""Of a training whose length nobody said: few rows make few steps an epoch, and a head that is far from its optimum."""


@dataclass(frozen=True, kw_only=True)
class TrainHeadConfig:
    """Train a light head on cached features; no image is read and no backbone is built."""

    store: Place
    """Store written by extract-features; s3://bucket/x.zarr and the like are read where they lie."""
    out: Path
    """Run folder to write."""
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
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the steps: half a cosine down to zero, or constant."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh classes by the inverse of their frequency among the training rows."""
    standardise: bool = True
    """Subtract the mean of the training rows and divide by their standard deviation, feature by feature."""
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
            (0 <= self.label_smoothing < 1, f"label_smoothing must lie in [0, 1), got {self.label_smoothing}"),
        )


@dataclass(frozen=True, slots=True)
class TrainReport:
    """A finished run."""

    folder: Path
    record: Mapping[str, Any]
    repeated: bool = False
    """Whether the run was there already."""

    def tables(self) -> list[Table]:
        """Return one row a split, metrics with 95 % intervals."""
        metrics = self.record["metrics"]
        names = [name for name, value in next(iter(metrics.values()), {}).items() if isinstance(value, dict)]
        rows = [(split, *(_shown(found[name]) for name in names)) for split, found in metrics.items()]
        notes = [f"{self.folder}: " + ("this run is there already: nothing to do" if self.repeated else self._cost())]
        title = f"{self.record['head']} on {', '.join(_ends(self.record['arrays']))} (95 % intervals)"
        return [Table(title, ("split", *names), rows, notes)]

    def _cost(self) -> str:
        record = self.record
        trained = (
            f"best at epoch {record['best_epoch']} of {record['epochs']}"
            if record["trained_parameters"]
            else "closed form"
        )
        return f"{trained}, {record['parameters']} parameters, {record['seconds']:.1f} s"

    def json(self) -> dict[str, Any]:
        """Return the record and the folder."""
        return {"run": str(self.folder), **self.record}


def _shown(measured: Mapping[str, float | None]) -> str:
    value, low, high = (
        float("nan") if v is None else v for v in (measured["value"], measured["low"], measured["high"])
    )
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _ends(arrays: list[str]) -> list[str]:
    return arrays if len(arrays) <= 3 else [arrays[0], "...", arrays[-1]]


def run(config: TrainHeadConfig) -> TrainReport:
    """Train, or say that this very run is there already.

    Raises:
        UnknownNameError, ConfigError, StoreContentsError: refused before anything is written, all problems at once.
        RunError: `out` holds another run; names what differs.
    """
    store, room = open_store(config.store), HEADS.load(config.head)
    config = replace(
        config,
        lr=config.lr or room.LEARNING_RATE or None,  # a head that is only solved has no rate
        device=str(resolve_device(config.device)),
    )
    plan = planned(store, config)
    if config.epochs is None:
        steps = math.ceil(len(plan.sources["train"]) / config.batch_size)
        config = replace(config, epochs=max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / steps)))
    asked = {name: value for name, value in asdict(config).items() if name not in ("out", "quiet", "layers", "tokens")}
    wanted = {
        **asked, "store": str(config.store), "arrays": list(plan.spec.shapes), "combine": plan.spec.combine,
        "features": {"backbone": dict(store.header.backbone), "data": dict(store.header.dataset)},
    }  # fmt: skip
    if is_done(config.out, wanted):
        return TrainReport(config.out, read_run(config.out)[1], repeated=True)
    return train_head(store, plan, config)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """What a run trains on, and what its head is built for."""

    sources: Mapping[str, CachedSource]
    """Split -> its labelled rows."""
    spec: HeadSpec
    """Still without statistics, which cost a pass over the rows."""


def planned(store: FeatureStore, config: TrainHeadConfig) -> Plan:
    """Return what the config asks of the store; nothing is written, and only the row table is read.

    Raises:
        ConfigError: lists every reason why the head cannot be built, or has nothing to learn from.
        StoreContentsError: the store is unfinished, or lacks what the head is to read.
    """
    header = store.header
    arrays, combine = select_arrays(header, HEADS.load(config.head).CONSUMES, config.layers, config.tokens)
    drawn = {"train": header.views if config.views == "all" else 1}
    sources = {
        split: CachedSource(store, arrays, labelled_rows(store, split), views=drawn.get(split, 1))
        for split in ("train", "val", "test")
    }
    spec = HeadSpec(
        shapes={name: header.array(name).tail for name in arrays},
        num_classes=max(1, len(header.class_names)),
        task=header.task,
        combine=combine,
    )
    classes = header.task == "classification"
    need = f"classes, but {store.path} holds a {header.task} task"
    check(
        *trainable(sources["train"]),
        (classes or config.class_weights == "none", f"class_weights {config.class_weights} needs {need}"),
        (classes or not config.label_smoothing, f"label_smoothing needs {need}"),
        *((False, problem) for problem in refusals(config.head, spec, config.head_option)),
    )
    return Plan(sources=sources, spec=spec)


def train_head(store: FeatureStore, plan: Plan, config: TrainHeadConfig) -> TrainReport:
    """Train one head on the training rows, keep the values that are best on validation, measure validation and test."""
    started, task, sources = time.perf_counter(), store.header.task, plan.sources
    train, origin = sources["train"], _origin(store, list(plan.spec.shapes))
    spec = replace(plan.spec, statistics=train.statistics()) if config.standardise else plan.spec
    weights = class_weights(train) if config.class_weights == "balanced" else None
    objective = cross_entropy(task, label_smoothing=config.label_smoothing, class_weights=weights).to(config.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        head = build_head(config.head, spec, config.head_option)
        chosen = head.solve(train.walk(4096)) if isinstance(head, ClosedForm) else {}
        member = Member(head, config.lr or 0.0, config.weight_decay)
        feeds: Mapping[str, FeatureSource] = {"train": train, "val": sources["val"]}
        if config.epochs and any(p.requires_grad for p in head.parameters()):
            feeds = staged({"train": train, "val": sources["val"]}, config.device)
        fit([member], feeds["train"], feeds["val"], objective, _recipe(config, train), task)
    metrics = {}
    with writing(config.out):
        for split in ("val", "test"):
            if len(sources[split]):
                metrics[split], logits = evaluate(head, sources[split], task, config.device)
                write_predictions(config.out, sources[split], logits)
        save_head(config.out, head, config.head, spec, config.head_option)
        _write_history(config.out, member)
    trained = [p.numel() for p in head.parameters() if p.requires_grad]
    record = {
        "head": config.head, "arrays": list(spec.shapes), "combine": spec.combine, "task": task,
        "class_names": list(store.header.class_names), "metrics": metrics, "selected_by": f"val {primary(task)}",
        "best_epoch": member.best_epoch, "epochs": config.epochs, "closed_form": chosen,
        "parameters": sum(p.numel() for p in head.parameters()), "trained_parameters": sum(trained),
        "rows": {split: len(source) for split, source in sources.items()}, "features": origin,
        "environment": environment(), "seconds": time.perf_counter() - started,
    }  # fmt: skip
    with writing(config.out):
        write_record(config.out, record)
    return TrainReport(config.out, record)


def _origin(store: FeatureStore, arrays: list[str]) -> dict[str, Any]:
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
        "tokens": list(header.tokens), "arrays": [asdict(header.array(name)) for name in arrays],
    }  # fmt: skip


def _recipe(config: TrainHeadConfig, train: CachedSource) -> Recipe:
    order: Order = config.order if config.order != "auto" else ("shuffled" if train.fits_memory() else "blocks")
    assert config.epochs is not None, "resolved by run"
    return Recipe(
        epochs=config.epochs, batch_size=config.batch_size, optimizer=config.optimizer, momentum=config.momentum,
        schedule=config.schedule, order=order, data_seed=config.data_seed, device=config.device, quiet=config.quiet,
    )  # fmt: skip


def _write_history(folder: Path, member: Member) -> None:
    """Write one line an epoch; a number that is none, of a training that diverged, is null: JSON knows no NaN."""
    lines = [{k: v if math.isfinite(v) else None for k, v in entry.items()} for entry in member.history]
    write_atomic(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
