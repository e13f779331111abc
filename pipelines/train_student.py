"""The verb `train-student`: train a small backbone guided by cached teachers; the loop, the record and the files of any run."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from featurecache.errors import FeatureCacheError
from featurecache.runs import discard, is_done, read_run
from pipelines.students.guiding import StudentGuide
from pipelines.students.planning import StudentPlan, planned
from pipelines.students.settings import TrainStudentConfig
from pipelines.train_head import TrainReport
from pipelines.train_online import CHECKPOINT, SilentReport, train_online
from pipelines.training.distributed import Ranks, joined

__all__ = ["TrainStudentConfig", "run"]

UNCOMPARED = ("out", "quiet", "workers", "decode_threads", "device", "cache", "student_weights", "sweep")
"""What the config says and does not change a run, or what is compared in another form."""


def run(config: TrainStudentConfig) -> Any:
    """Train a student, or every cell of a sweep; go on where a stopped command stands, or say that it is done already.

    Raises:
        FeatureCacheError: refused before anything is written, all problems at once; or the folder is left as it was.
        RunError: `out` holds another run (names what differs), or the loss ceased to be a number.
    """
    with joined(config.device) as (ranks, device):
        found = _one(replace(config, device=device), ranks)
        return found if ranks.first else SilentReport()


def _one(config: TrainStudentConfig, ranks: Ranks) -> TrainReport:
    """Train one student."""
    plan = planned(config)
    if ranks.by_first(lambda: is_done(config.out, wanted(plan))):
        return TrainReport(config.out, read_run(config.out)[1], repeated=True)
    try:
        return train_student(plan, ranks)
    except FeatureCacheError:
        if ranks.first and not (config.out / CHECKPOINT).exists():
            discard(config.out)
        raise


def wanted(plan: StudentPlan) -> dict[str, Any]:
    """Return what makes this run this run."""
    config, online = plan.config, plan.online
    asked = {name: value for name, value in asdict(config).items() if name not in UNCOMPARED}
    return {
        **asked, "objective": config.named, "prec": config.weight, "lr": config.rates[0], "backbone_lr": config.rates[1],
        "epochs": plan.settings.epochs, "precision": online.backbone.identity.get("precision"),
        "device": online.backbone.device.type,
        "teacher": [str(place) for place in config.teacher],
        "teachers": [dict(one.store.header.backbone) for one in plan.teachers],
        "features": {"backbone": dict(online.header.backbone), "data": dict(online.header.dataset)},
    }  # fmt: skip


def train_student(plan: StudentPlan, ranks: Ranks) -> TrainReport:
    """Train the student on its rows with what its teachers say of them."""
    settings = replace(plan.settings, out=plan.config.out)
    return train_online(plan.online, settings, ranks, StudentGuide(plan, plan.config.out))
