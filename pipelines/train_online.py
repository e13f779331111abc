"""The verb `train-online`: train a head on images through a backbone that may learn too; the same heads, loop and records."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from featurecache.checks import check
from featurecache.datasets import Fingerprint
from featurecache.decoders import Decoder
from featurecache.devices import environment
from featurecache.errors import FeatureCacheError, RunError
from featurecache.features import FeatureBatch, Task
from featurecache.metrics import primary
from featurecache.peft import save_adapted
from featurecache.reports import Table
from featurecache.runs import discard, is_done, read_run, write_history, write_record
from featurecache.sources import FeatureSource
from featurecache.sources.live import FORWARD, LiveSource
from featurecache.sources.statistics import statistics_of
from heads import HEADS, ClosedForm, HeadSpec
from heads._checkpoint import build_head, save_head
from pipelines._evaluation import measured, write_rows
from pipelines._online import Plan, images_of, planned, products_in, sources_of
from pipelines._rows import balanced
from pipelines.objectives.cross_entropy import build as cross_entropy
from pipelines.train_head import TrainReport
from pipelines.training.distributed import Ranks, joined, whole
from pipelines.training.fitting import Pace, Recipe, fit
from pipelines.training.optimizers import Rule
from pipelines.training.outputs import outputs_of
from pipelines.training.schedules import Schedule
from pipelines.training.stack import Member

CHECKPOINT = "checkpoint.pt"
UNCOMPARED = ("out", "quiet", "workers", "decode_threads", "layers", "tokens", "weights", "device")
"""What the config says and does not change a run, or what is compared in another form."""


@dataclass(frozen=True, kw_only=True)
class TrainOnlineConfig:
    """Train a head on images through a backbone, and of the backbone what a method trains."""

    data: str
    """Data set: a folder, a .zip or .tar of one, a manifest, or NAME[:ARGUMENT] such as digits."""
    backbone: str
    """Backbone: timm:NAME, open_clip:ARCH/PRETRAINED, demo, or python:package.module:function."""
    out: Path
    """Run folder to write."""
    peft: str = "none"
    """What of the backbone is trained: `featurecache list peft` names the methods; none and linear train the head alone."""
    peft_option: Mapping[str, Any] = field(default_factory=dict)
    """Option of the method k=v, e.g. layer_decay=0.75 of full; may be given several times."""
    backbone_lr: float | None = None
    """Learning rate of what is trained in the backbone, at the start; default: the method's own."""
    drop_path: float = 0.0
    """Probability with which training skips the last block for an image, rising from 0 in the first one (timm's)."""
    init_from: Path | None = None
    """Finished run to start from, of train-head or train-online: its head, and what it trained in its backbone."""
    head: str = "linear"
    """Which head to train; `featurecache list heads` names them."""
    layers: str | None = None
    """Layers the head reads: last, an index, indices such as 0,3,6-11, embedding, mean, or concat; default: the head's own."""
    tokens: str = "auto"
    """Kinds of token joined by +, of those the backbone has; auto is cls, else mean."""
    head_option: Mapping[str, Any] = field(default_factory=dict)
    """Option of the head k=v, e.g. start=published; may be given several times."""
    epochs: int = 20
    """Passes over the training images."""
    lr: float | None = None
    """Learning rate of the head at the start; default: the head's own."""
    weight_decay: float = 0.01
    """Decay of the values, decoupled from the gradient under adamw."""
    batch_size: int = 64
    """Images a step, of all processes together."""
    accumulate: int = 1
    """Parts into which a step is cut, one after the other: less memory, the same gradient."""
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
    standardise: bool = True
    """Subtract the mean of the training features before training and divide by their deviation, where the head takes that."""
    augment: str = "none"
    """How training sees an image, anew in every epoch: none, flip, crop or strong as cached views are drawn, or timm."""
    augment_option: Mapping[str, Any] = field(default_factory=dict)
    """Option of timm's augmentation k=v: scale, hflip, color_jitter, auto_augment=rand-m9-mstd0.5, re_prob, ...; several times."""
    weights: str | None = None
    """Weights file (.safetensors, or a state dict), or random:SEED, instead of a download."""
    backbone_option: Mapping[str, Any] = field(default_factory=dict)
    """Architecture argument k=v, e.g. pad_type=same; may be given several times."""
    transform: Mapping[str, Any] = field(default_factory=dict)
    """Preprocessing override k=v: mean, std, size, crop, interpolation; may be given several times."""
    image_size: int | None = None
    """Side of the input in pixels; default: the model's own."""
    norm: Literal["final", "none"] = "final"
    """final: layers of the final width pass through the model's final norm; none: raw stream."""
    prompts: str = "auto"
    """What CLIP's text side says of the class names, for heads that read it; as in extract-features."""
    device: str = "cpu"
    """Device to train on: cpu, cuda, cuda:1, auto. Under torchrun, cuda is one GPU for each process."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "tf32"] = "auto"
    """Arithmetic of the backbone; auto is fp32 on a CPU and bf16 on a GPU that has it. fp32 is without TF32."""
    split_seed: int = 0
    """Seed of the automatic split, where the data brings none."""
    task: Task | None = None
    """How the labels of a manifest are read: classification, multilabel or regression; default: as they look."""
    fingerprint: Fingerprint = "sizes"
    """What recognises the data besides ids and labels: sizes of the files, content (reads them all once), or names."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable image does: stop the run, or be left out (all images are then decoded once before training)."""
    decoder: Decoder = "pillow"
    """What decodes JPEG files: pillow, to the bit as timm does, or simplejpeg, faster and nearly the same; see the docs."""
    decode_threads: int | None = None
    """Threads that decode images; default: one for each core."""
    workers: int = 0
    """Processes that decode and augment images ahead of the model; 0: threads."""
    seed: int = 0
    """Seed of the start of head and method, and of dropout."""
    data_seed: int = 0
    """Seed of the order of the images and of their augmentation."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        rates = {"lr": self.lr, "backbone_lr": self.backbone_lr, "warmup_lr": self.warmup_lr}
        check(
            (self.epochs >= 0, f"epochs must not be negative, got {self.epochs}"),
            *((rate is None or 0 < rate < math.inf, f"{n} must be positive, got {rate}") for n, rate in rates.items()),
            (0 <= self.weight_decay < math.inf, f"weight_decay must not be negative, got {self.weight_decay}"),
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
            (
                self.accumulate > 0 and self.batch_size % self.accumulate == 0,
                f"accumulate must be positive and divide batch_size, got {self.accumulate} of {self.batch_size}",
            ),
            (0 <= self.momentum < 1, f"momentum must lie in [0, 1), got {self.momentum}"),
            (self.warmup_epochs >= 0, f"warmup_epochs must not be negative, got {self.warmup_epochs}"),
            (0 <= self.drop_path < 1, f"drop_path must lie in [0, 1), got {self.drop_path}"),
            (0 <= self.label_smoothing < 1, f"label_smoothing must lie in [0, 1), got {self.label_smoothing}"),
            (self.image_size is None or self.image_size > 0, f"image_size must be positive, got {self.image_size}"),
            (self.workers >= 0, f"workers must not be negative, got {self.workers}"),
            (
                self.decode_threads is None or self.decode_threads > 0,
                f"decode_threads must be positive, got {self.decode_threads}",
            ),
            (
                not self.workers or self.decode_threads is None,
                "workers are processes that decode instead of threads: give workers or decode_threads, not both",
            ),
        )


@dataclass(frozen=True, slots=True)
class SilentReport:
    """What the processes beside the first one say."""

    def tables(self) -> list[Table]:
        """Return nothing."""
        return []

    def json(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


def run(config: TrainOnlineConfig) -> TrainReport | SilentReport:
    """Train, go on where a stopped run of the same command stands, or say that this very run is there already.

    Raises:
        FeatureCacheError: refused before anything is written, all problems at once; or the folder is left as it was.
        RunError: `out` holds another run (names what differs), or the loss ceased to be a number.
    """
    with joined(config.device) as (ranks, device):
        config = replace(config, device=device)
        plan = planned(config)
        if ranks.by_first(lambda: is_done(config.out, _wanted(plan, config))):
            found = TrainReport(config.out, read_run(config.out)[1], repeated=True)
        else:
            try:
                found = train_online(plan, config, ranks)
            except FeatureCacheError:
                if ranks.first and not (config.out / CHECKPOINT).exists():
                    discard(config.out)
                raise
        return found if ranks.first else SilentReport()


def _wanted(plan: Plan, config: TrainOnlineConfig) -> dict[str, Any]:
    """Return what makes this run this run."""
    asked = {name: value for name, value in asdict(config).items() if name not in UNCOMPARED}
    return {
        **asked, "init_from": str(config.init_from) if config.init_from else None, "lr": plan.rates[0],
        "backbone_lr": plan.rates[1] or None, "precision": plan.backbone.identity.get("precision"),
        "device": plan.backbone.device.type, "arrays": list(plan.spec.shapes), "combine": plan.spec.combine,
        "features": {"backbone": dict(plan.header.backbone), "data": dict(plan.header.dataset)},
    }  # fmt: skip


def train_online(plan: Plan, config: TrainOnlineConfig, ranks: Ranks) -> TrainReport:
    """Train head and backbone on the training rows, keep what is best on validation, measure validation and test."""
    started, header = time.perf_counter(), plan.header
    precision = str(plan.backbone.identity.get("precision"))
    if plan.backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.backbone.device)
    with images_of(plan, config, ranks) as images, products_in(precision), torch.random.fork_rng():
        sources, skipped = sources_of(plan, images, config, ranks)
        torch.manual_seed(config.seed)
        head, spec, solved = _started(plan, whole(sources["train"], ranks), config)
        member = Member(head, plan.rates[0], config.weight_decay)
        pace = _fitted(member, plan, sources, config, ranks)
        metrics = {
            split: _measured(head, plan, sources[split], config, ranks)
            for split in ("val", "test") if len(sources[split])
        }  # fmt: skip
    if ranks.first:
        save_head(config.out, head, config.head, spec, config.head_option)
        if plan.adapted.kept:
            save_adapted(config.out, plan.adapted, config.peft, config.peft_option, plan.backbone.identity)
        write_history(config.out, member.history)
    record = {
        **_facts(plan, config), "metrics": metrics, "closed_form": solved, "best_epoch": member.best_epoch,
        **_sizes(plan, head), **_pace(pace, plan, ranks),
        "rows": {split: len(source) for split, source in sources.items()},
        "skipped": {plan.dataset.table.sample_id[row]: why for row, why in skipped.items()},
        "selected_by": f"val {primary(header.task)}", "environment": environment(),
        "seconds": time.perf_counter() - started,
    }  # fmt: skip
    if ranks.first:
        write_record(config.out, record)
    return TrainReport(config.out, record)


def _started(
    plan: Plan, train: FeatureSource, config: TrainOnlineConfig
) -> tuple[nn.Module, HeadSpec, dict[str, float]]:
    """Return (head, its spec, what a closed form chose): that of a run, or one on features as they are before training."""
    if plan.start is not None:
        return plan.start.head, plan.start.spec, {}
    standardises = config.standardise and getattr(HEADS.load(config.head), "STANDARDISED", True)
    with torch.device("meta"):
        solves = isinstance(build_head(config.head, plan.spec, config.head_option), ClosedForm)
    batches: Any = train.walk(FORWARD)
    if solves:  # walked several times, and images are dear
        batches = [_on_cpu(batch) for batch in batches]
    statistics = statistics_of(map(_on_cpu, batches)) if standardises else {}
    spec = replace(plan.spec, statistics=statistics)
    head = build_head(config.head, spec, config.head_option)
    return head, spec, head.solve(batches) if isinstance(head, ClosedForm) else {}


def _on_cpu(batch: FeatureBatch) -> FeatureBatch:
    return replace(batch, arrays={name: values.cpu() for name, values in batch.arrays.items()})


def _fitted(
    member: Member, plan: Plan, sources: Mapping[str, LiveSource], config: TrainOnlineConfig, ranks: Ranks
) -> Pace:
    """Train, or go on with a training; what was best on validation is then in head and backbone.

    Raises:
        RunError: the loss ceased to be a number.
    """
    train, validation, task = sources["train"], sources["val"], plan.header.task
    targets = train.targets(train.rows).numpy()
    weights = balanced(targets, len(plan.header.class_names)) if config.class_weights == "balanced" else None
    objective = cross_entropy(task, label_smoothing=config.label_smoothing, class_weights=weights).to(config.device)
    recipe = Recipe(
        epochs=config.epochs, batch_size=config.batch_size, accumulate=config.accumulate, optimizer=config.optimizer,
        momentum=config.momentum, schedule=config.schedule, warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr, data_seed=config.data_seed, evaluation_batch=FORWARD, device=config.device,
        scale_loss=plan.backbone.identity.get("precision") == "fp16" and bool(plan.adapted.trainable), quiet=config.quiet,
    )  # fmt: skip
    path = config.out / CHECKPOINT
    pace = fit([member], train, whole(validation, ranks), objective, recipe, task, checkpoint=path, ranks=ranks)
    if member.diverged:
        raise RunError(
            f"the loss ceased to be a number in epoch {member.diverged} (learning rates {plan.rates[0]:g} of the head, "
            f"{plan.rates[1]:g} of the backbone), so there is nothing to keep. Give a lower --lr or --backbone-lr."
        )
    return pace


def _measured(
    head: nn.Module, plan: Plan, source: LiveSource, config: TrainOnlineConfig, ranks: Ranks
) -> dict[str, Any]:
    """Return the metrics of a split, and write what is said of its rows; of the splits, the last one's stay."""
    table, header = plan.dataset.table, plan.header
    logits, targets = outputs_of(head, whole(source, ranks), config.device)
    if ranks.first:
        write_rows(config.out, table, source.rows, logits, header.class_names, header.task)
    return measured(logits, targets, np.asarray(table.group)[source.rows], header.task)


def _facts(plan: Plan, config: TrainOnlineConfig) -> dict[str, Any]:
    """Return what was trained, as the records of cached runs say it."""
    header = plan.header
    arrays = [asdict(header.array(name)) for name in plan.spec.shapes]
    return {
        "head": config.head, "arrays": list(plan.spec.shapes), "combine": plan.spec.combine, "task": header.task,
        "class_names": list(header.class_names), "epochs": config.epochs,
        "peft": {"method": config.peft, "options": dict(config.peft_option)},
        "features": {
            "backbone": dict(header.backbone), "data": dict(header.dataset), "origin": dict(plan.backbone.origin),
            "tokens": list(header.tokens), "arrays": arrays,
        },
    }  # fmt: skip


def _sizes(plan: Plan, head: nn.Module) -> dict[str, int]:
    """Return how many numbers there are, and how many are trained."""
    of_head = sum(p.numel() for p in head.parameters() if p.requires_grad)
    of_backbone = sum(p.numel() for p in plan.adapted.parameters().values())
    return {
        "parameters": sum(p.numel() for p in head.parameters()), "trained_parameters": of_head + of_backbone,
        "backbone_parameters": sum(p.numel() for p in plan.backbone.module.parameters()),
        "trained_backbone_parameters": of_backbone,
    }  # fmt: skip


def _pace(pace: Pace, plan: Plan, ranks: Ranks) -> dict[str, Any]:
    device = plan.backbone.device
    return {
        "processes": ranks.count, "steps": pace.steps,
        "step_seconds": pace.seconds / pace.steps if pace.steps else None,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }  # fmt: skip
