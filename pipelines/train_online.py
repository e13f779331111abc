"""The verb `train-online`: train a head on images through a backbone that may learn too; the same heads, loop and records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featurecache.devices import environment
from featurecache.errors import DivergedError, FeatureCacheError, UnreadableSampleError
from featurecache.features import FeatureBatch
from featurecache.metrics import primary
from featurecache.peft import save_adapted
from featurecache.reports import Displayed, Table
from featurecache.runs import discard, is_done, read_run, recorded_place, write_history, write_record
from featurecache.sources import FeatureSource
from featurecache.sources.live import FORWARD, LiveSource
from featurecache.sources.statistics import compute_target_statistics, shrink_deviations, statistics_of
from featurecache.threads import heeds_threads
from heads import HEADS, ClosedForm, HeadSpec
from heads._checkpoint import build_head, save_head
from pipelines._evaluation import measured, write_rows
from pipelines._roles import record_roles
from pipelines._rows import balanced
from pipelines._training_rows import write_training_rows
from pipelines.objectives import Objective
from pipelines.objectives.cross_entropy import build as cross_entropy
from pipelines.online.costs import costs_of
from pipelines.online.guide import Guide
from pipelines.online.planning import Plan, images_of, planned, products_in, sources_of
from pipelines.online.reporting import SweepReport
from pipelines.online.settings import TrainOnlineConfig
from pipelines.online.sweeping import remark_on, sweep
from pipelines.training.closing import count_parameters
from pipelines.training.distributed import Ranks, joined, whole
from pipelines.training.fitting import Pace, fit
from pipelines.training.outputs import outputs_of
from pipelines.training.recipe import Recipe
from pipelines.training.reporting import TrainReport
from pipelines.training.stack import Member
from pipelines.training.training import describe_standardisation

CHECKPOINT = "checkpoint.pt"
LEFT_OUT = "it is left out of training and measuring, and the record names it"
"""What --on-error skip does to an image here."""
UNCOMPARED = ("out", "quiet", "threads", "jobs", "workers", "decode_threads", "layers", "tokens", "weights", "device")
"""What the config says and does not change a run, or what is compared in another form."""
UNUSED: Mapping[str, Any] = {
    "load_published": None, "recipe": None, "sweep": {}, "train_on": "train", "test": True, "rows": None,
    "test_split": None,
}  # fmt: skip
"""Settings that are recorded where they are used -> what they are where they are not."""


@dataclass(frozen=True, slots=True)
class SilentReport(Displayed):
    """What the processes beside the first one say."""

    def tables(self) -> list[Table]:
        """Return nothing."""
        return []

    def json(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


@heeds_threads
def run(config: TrainOnlineConfig) -> TrainReport | SilentReport | SweepReport:
    """Train, go on where a stopped run of the same command stands, or say that this very run is there already.

    Raises:
        FeatureCacheError: refused before anything is written, all problems at once; or the folder is left as it was.
        RunError: `out` holds another run (names what differs), or the loss ceased to be a number.
    """
    with joined(config.device) as (ranks, device):
        config = replace(config, device=device)
        plan = planned(config)
        if config.sweep:
            return sweep(config, run, _wanted(plan, config))
        if ranks.by_first(lambda: is_done(config.out, _wanted(plan, config))):
            found = TrainReport(config.out, read_run(config.out)[1], repeated=True)
        else:
            try:
                found = train_online(plan, config, ranks)
            except FeatureCacheError as error:
                if ranks.first and not (config.out / CHECKPOINT).exists():
                    discard(config.out)
                if isinstance(error, UnreadableSampleError):
                    raise error.explain_skipping(LEFT_OUT) from error
                raise
        return found if ranks.first else SilentReport()


def _wanted(plan: Plan, config: TrainOnlineConfig) -> dict[str, Any]:
    """Return what makes this run this run."""
    asked = {name: value for name, value in asdict(config).items() if name not in UNCOMPARED}
    asked = {name: value for name, value in asked.items() if name not in UNUSED or value != UNUSED[name]}
    published = {"load_published": list(map(str, config.load_published))} if config.load_published else {}
    return {
        **asked, **published, "init_from": str(config.init_from) if config.init_from else None,
        "data": recorded_place(config.out, "data", config.data, plan.dataset.spec), "lr": plan.rates[0],
        "backbone_lr": plan.rates[1] or None, "precision": plan.backbone.identity.get("precision"),
        "device": plan.backbone.device.type, "arrays": list(plan.spec.shapes), "combine": plan.spec.combine,
        "features": {"backbone": dict(plan.header.backbone), "data": dict(plan.header.dataset)},
    }  # fmt: skip


def train_online(plan: Plan, config: TrainOnlineConfig, ranks: Ranks, guide: Guide | None = None) -> TrainReport:
    """Train head and backbone on the training rows, keep what is best on validation, measure validation and test.

    With a `guide` the backbone is a student, and its teachers have their say.
    """
    started, header = time.perf_counter(), plan.header
    precision = str(plan.backbone.identity.get("precision"))
    if plan.backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.backbone.device)
    with images_of(plan, config, ranks) as images, products_in(precision), torch.random.fork_rng():
        sources, skipped = sources_of(plan, images, config, ranks)
        torch.manual_seed(config.seed)
        head, spec, solved = _started(plan, sources, config, ranks)
        member = Member(head, plan.rates[0], config.weight_decay)
        pace = _fitted(member, spec, plan, sources, config, ranks, guide)
        metrics = {
            split: _measured(head, plan, sources[split], config, ranks)
            for split in ("val", "test") if len(sources[split])
        }  # fmt: skip
        told = guide.end(sources, head, ranks) if guide else {}
    if ranks.first:
        save_head(config.out, head, config.head, spec, config.head_option)
        if plan.adapted.kept:
            save_adapted(config.out, plan.adapted, config.peft, config.peft_option, plan.backbone.identity)
        write_history(config.out, member.history)
        learned = {split: sources[split].rows for split in ("train", "val")}
        write_training_rows(config.out, plan.dataset.table.sample_id, learned)
    record = {
        **_facts(plan, config), "metrics": metrics, "closed_form": solved, "best_epoch": member.best_epoch,
        "still_improving": member.still_improving, "standardised_by": describe_standardisation(len(sources["train"]), spec),
        **_sizes(plan, head), **_pace(pace, plan, ranks), "costs": costs_of(plan, config.batch_size // config.accumulate),
        "rows": {split: len(source) for split, source in sources.items()},
        "skipped": {plan.dataset.table.sample_id[row]: why for row, why in skipped.items()},
        "selected_by": f"val {primary(header.task)}", "environment": environment(),
        "seconds": time.perf_counter() - started, **told,
    }  # fmt: skip
    if ranks.first:
        write_record(config.out, record)
    return TrainReport(config.out, record)


def _started(
    plan: Plan, sources: Mapping[str, LiveSource], config: TrainOnlineConfig, ranks: Ranks
) -> tuple[nn.Module, HeadSpec, dict[str, float]]:
    """Return (head, its spec, what a closed form chose): that of a run, or one on features as they are before training."""
    if plan.start is not None:
        return plan.start.head, plan.start.spec, {}
    standardises = config.standardise and getattr(HEADS.load(config.head), "STANDARDISED", True)
    with torch.device("meta"):
        solves = isinstance(build_head(config.head, plan.spec, config.head_option), ClosedForm)
    train, validation = whole(sources["train"], ranks), sources["val"]
    batches: Any = train.walk(FORWARD)
    if solves:  # walked several times, and images are dear
        batches = [_on_cpu(batch) for batch in batches]
    scaled = compute_target_statistics(_targets_of(sources["train"])) if plan.header.task == "regression" else None
    statistics = shrink_deviations(statistics_of(map(_on_cpu, batches)), len(train)) if standardises else {}
    spec = replace(plan.spec, statistics=statistics, target_statistics=scaled)
    head = build_head(config.head, spec, config.head_option)
    if plan.published is not None:
        plan.published.set(config.head, head)
    if not isinstance(head, ClosedForm):
        return head, spec, {}
    chosen_on = _CpuWalk(whole(validation, ranks)) if len(validation) else None
    return head, spec, head.solve(batches, chosen_on)


@dataclass(frozen=True, slots=True)
class _CpuWalk:
    """Batches of a source on the CPU, computed only when a head asks for them: most choose by leave-one-out."""

    source: FeatureSource

    def __iter__(self) -> Iterator[FeatureBatch]:
        return map(_on_cpu, self.source.walk(FORWARD))


def _targets_of(source: LiveSource) -> Tensor:
    return source.targets(source.rows)


def _on_cpu(batch: FeatureBatch) -> FeatureBatch:
    return replace(batch, arrays={name: values.cpu() for name, values in batch.arrays.items()})


def _fitted(
    member: Member,
    spec: HeadSpec,
    plan: Plan,
    sources: Mapping[str, LiveSource],
    config: TrainOnlineConfig,
    ranks: Ranks,
    guide: Guide | None,
) -> Pace:
    """Train, or go on with a training; what was best on validation is then in head and backbone.

    Raises:
        DivergedError: the loss ceased to be a number.
    """
    train, validation, task = sources["train"], sources["val"], plan.header.task
    targets = _targets_of(train).numpy()
    weights = balanced(targets, len(plan.header.class_names)) if config.class_weights == "balanced" else None
    objective: Objective = cross_entropy(
        task, label_smoothing=config.label_smoothing, class_weights=weights,
        target_scale=None if spec.target_statistics is None else spec.target_statistics[1],
    ).to(config.device)  # fmt: skip
    rows: FeatureSource = train
    if guide:
        rows, objective = guide.begin(sources, objective, ranks)
    recipe = Recipe(
        epochs=config.epochs, batch_size=config.batch_size, accumulate=config.accumulate, evaluation_batch=FORWARD,
        device=config.device, reshuffle=guide is None or guide.reshuffles,
        scale_loss=plan.backbone.identity.get("precision") == "fp16" and bool(plan.adapted.trainable), **config.stepping(),
    )  # fmt: skip
    path = config.out / CHECKPOINT
    judge = whole(validation, ranks) if guide is None or guide.keeps_best else None
    pace = fit([member], rows, judge, objective, recipe, task, checkpoint=path, ranks=ranks)
    if member.diverged:
        raise DivergedError(
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
        "class_names": list(header.class_names), "epochs": config.epochs, **record_roles(plan.roles),
        "peft": {"method": config.peft, "options": dict(config.peft_option)},
        **({"recipe": {"name": config.recipe, "remark": remark_on(config)}} if config.recipe else {}),
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
        "backbone_parameters": count_parameters(plan.backbone.module),
        "trained_backbone_parameters": of_backbone,
    }  # fmt: skip


def _pace(pace: Pace, plan: Plan, ranks: Ranks) -> dict[str, Any]:
    device = plan.backbone.device
    return {
        "processes": ranks.count, "steps": pace.steps,
        "step_seconds": pace.seconds / pace.steps if pace.steps else None,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }  # fmt: skip
