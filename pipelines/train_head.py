"""The verb `train-head`: train a light head on the features of a store; no image is read, no backbone is built."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet
import torch
from torch import Tensor

from featurecache.checks import check
from featurecache.devices import environment, resolve_device
from featurecache.errors import StoreContentsError
from featurecache.files import write_atomic
from featurecache.metrics import primary
from featurecache.provenance import provenance
from featurecache.reports import Table
from featurecache.runs import is_done, read_run, write_record
from featurecache.sources import Order
from featurecache.sources.cached import CachedSource, split_rows
from featurecache.stores import FeatureStore, open_store
from heads import HEADS, HeadSpec
from heads._checkpoint import build_head, save_head
from pipelines._arrays import select_arrays
from pipelines._evaluation import evaluate, prediction_table
from pipelines._fitting import Member, Recipe, fit
from pipelines._optimizers import Rule
from pipelines.objectives.cross_entropy import build as cross_entropy


@dataclass(frozen=True, kw_only=True)
class TrainHeadConfig:
    """Train a light head on cached features; no image is read and no backbone is built."""

    store: Path
    """Store written by extract-features."""
    out: Path
    """Run folder to write."""
    head: str = "linear"
    """Which head to train; `featurecache list heads` names them."""
    layers: str | None = None
    """Layers the head reads: last, an index, indices such as 0,3,6-11, embedding, mean, or concat; default: the head's own."""
    tokens: str = "auto"
    """Kinds of token joined by +, of those in the store; auto is the store's first."""
    head_option: Mapping[str, Any] = field(default_factory=dict)
    """Option of the head k=v, e.g. start=published; may be given several times."""
    epochs: int = 50
    """Passes over the training rows."""
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
            (self.epochs >= 0, f"epochs must not be negative, got {self.epochs}"),
            (self.lr is None or self.lr > 0, f"lr must be positive, got {self.lr}"),
            (self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}"),
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
    """Train, or say that this very run is there already."""
    store = open_store(config.store)
    HEADS.load(config.head)
    wanted = {
        **{k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items() if k not in ("out", "quiet")},
        "features": {"backbone": dict(store.header.backbone), "data": dict(store.header.dataset)},
    }  # fmt: skip
    if is_done(config.out, wanted):
        return TrainReport(config.out, read_run(config.out)[1], repeated=True)
    return train_head(store, config)


def train_head(store: FeatureStore, config: TrainHeadConfig) -> TrainReport:
    """Train one head on the training rows, keep the values that are best on validation, measure validation and test."""
    started, header, device = time.perf_counter(), store.header, str(resolve_device(config.device))
    room = HEADS.load(config.head)
    arrays, combine = select_arrays(header, room.CONSUMES, config.layers, config.tokens)
    sources = {split: CachedSource(store, arrays, labelled_rows(store, split)) for split in ("train", "val", "test")}
    _check_trainable(sources["train"], store)
    spec = HeadSpec(
        shapes={name: header.array(name).tail for name in arrays},
        num_classes=len(header.class_names),
        task=header.task,
        combine=combine,
        statistics=sources["train"].statistics() if config.standardise else {},
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        head = build_head(config.head, spec, config.head_option)
        chosen = head.solve(sources["train"].walk(4096)) if hasattr(head, "solve") else {}
        member = Member(head, room.LEARNING_RATE if config.lr is None else config.lr, config.weight_decay)
        objective = cross_entropy(
            header.task, label_smoothing=config.label_smoothing, class_weights=_class_weights(sources["train"], config)
        ).to(device)
        fit(
            [member],
            sources["train"],
            sources["val"],
            objective,
            _recipe(config, sources["train"], device),
            header.task,
        )
    metrics = {}
    for split in ("val", "test"):
        if len(sources[split]):
            metrics[split], logits = evaluate(head, sources[split], header.task, device)
            _write_predictions(config.out, sources[split], logits)
    save_head(config.out, head, config.head, spec, config.head_option)
    lines = [json.dumps(entry) + "\n" for entry in member.history]
    write_atomic(config.out / "history.jsonl", "".join(lines).encode())
    trained = [p.numel() for p in head.parameters() if p.requires_grad]
    record = {
        "head": config.head, "arrays": list(arrays), "combine": combine, "task": header.task,
        "class_names": list(header.class_names), "metrics": metrics, "selected_by": f"val {primary(header.task)}",
        "best_epoch": member.best_epoch, "epochs": config.epochs, "closed_form": chosen,
        "parameters": sum(p.numel() for p in head.parameters()), "trained_parameters": sum(trained),
        "rows": {split: len(source) for split, source in sources.items()},
        "features": {"backbone": dict(header.backbone), "data": dict(header.dataset), "origin": origin_of(store.path),
                     "tokens": list(header.tokens), "arrays": [asdict(header.array(name)) for name in arrays]},
        "environment": environment(), "seconds": time.perf_counter() - started,
    }  # fmt: skip
    write_record(config.out, record)
    return TrainReport(config.out, record)


def labelled_rows(store: FeatureStore, split: str) -> npt.NDArray[np.int64]:
    """Return the committed, readable, labelled rows of a split, ascending."""
    rows = split_rows(store, split)
    targets = np.asarray(store.table().target)[rows]
    known = targets >= 0 if targets.ndim == 1 else ~np.isnan(targets.astype(np.float64)).any(1)
    return rows[known]


def origin_of(store: Path) -> dict[str, Any]:
    """Return what builds the backbone of a store again; {} where nothing was noted."""
    return next((dict(line["origin"]) for line in provenance(store) if "origin" in line), {})


def _check_trainable(train: CachedSource, store: FeatureStore) -> None:
    table, task = store.table(), store.header.task
    seen = np.unique(np.asarray(table.target)[train.rows])
    check(
        (len(train) > 0, f"{store.path} holds no labelled training rows, so there is nothing to learn from"),
        (
            task != "classification" or len(train) == 0 or len(seen) > 1,
            f"all training rows of {store.path} are of one class, so there is nothing to tell apart",
        ),
    )


def _class_weights(train: CachedSource, config: TrainHeadConfig) -> Tensor | None:
    if config.class_weights == "none":
        return None
    header = train.store.header
    if header.task != "classification":
        raise StoreContentsError(f"class weights need classes; {train.store.path} holds a {header.task} task.")
    counts = np.bincount(np.asarray(train.store.table().target)[train.rows], minlength=len(header.class_names))
    weights = len(train) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(weights).float()


def _recipe(config: TrainHeadConfig, train: CachedSource, device: str) -> Recipe:
    order: Order = config.order if config.order != "auto" else ("shuffled" if train.fits_memory() else "blocks")
    return Recipe(
        epochs=config.epochs, batch_size=config.batch_size, optimizer=config.optimizer, momentum=config.momentum,
        schedule=config.schedule, order=order, data_seed=config.data_seed, device=device, quiet=config.quiet,
    )  # fmt: skip


def _write_predictions(folder: Path, source: CachedSource, logits: Tensor) -> None:
    """Write the rows of the last split that has any: test where there is one."""
    table, header = source.store.table(), source.store.header
    ids, targets = np.asarray(table.sample_id)[source.rows], np.asarray(table.target)[source.rows]
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(prediction_table(ids, targets, logits, header.class_names, header.task), sink)
    write_atomic(folder / "predictions.parquet", sink.getvalue().to_pybytes())
