"""What users say of a student: the small backbone, its teachers, the objective, and how honest the training is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from featurecache.places import Place
from pipelines.online.settings import OnImages, TrainOnlineConfig
from pipelines.training.optimizers import Rule

RATE = 1e-3
"""Of everything in the student, where nobody says another."""
PREC = 1.0
"""Weight of the distance to the teachers, where nobody says another."""
SEEN_AS_CACHED = "views"
"""Augmentation that shows the student the views that its teachers keep."""


@dataclass(frozen=True, kw_only=True)
class TrainStudentConfig(OnImages):
    """Train a small backbone and a head on images, guided by the cached features of large ones."""

    student: str | None = None
    """Student: timm:NAME, or another name as for train-online --backbone; all of it is trained. concat_probe needs none."""
    student_weights: str | None = None
    """Weights file of the student (.safetensors, or a state dict), instead of a download."""
    from_scratch: bool = False
    """Start the student from random weights, drawn from --seed."""
    teacher: tuple[Place, ...] = ()
    """Store of a teacher over the same data, from extract-features; several times for several teachers."""
    teacher_array: str = "embedding"
    """Array of the stores that teaches, one of vectors: embedding, layers/cls/11, ..."""
    objective: str = "aft"
    """What is minimised: none (labels alone), aft, kd, kernel_kd, feature_prior, rkd, factor_transfer, b_tuning, or concat_probe (no student: a probe on the features of all teachers)."""
    objective_option: Mapping[str, Any] = field(default_factory=dict)
    """Option of the objective k=v, e.g. kernel=rbf of aft; may be given several times."""
    prec: float | None = None
    """Weight of the distance to the teachers beside the likelihood of the labels; default: 1."""
    prior_lr: float = 1e-2
    """Learning rate of what aft, kernel_kd and feature_prior learn themselves; that of other objectives is the student's."""
    prior_freq: int = 1
    """The student learns in every so-manieth step of an epoch; what the objective learns itself, in all of them."""
    backbone_lr: float | None = None
    """Learning rate of the student below its head; default: that of the head, --lr, or 0.001."""
    optimizer: Rule = "adam"
    """Rule of the steps."""
    weight_decay: float = 0.0
    """Decay of the student's values: decoupled from the gradient under adamw, part of it under adam and sgd."""
    batch_size: int = 128
    """Images a step, of all processes together; kernels compare all of them with each other."""
    standardise: bool = False
    """Let the head standardise the student's vector by what it is before training."""
    augment: str = "none"
    """How training sees an image: as for train-online, the teachers' rows being those of the clean picture; or views, those that the stores keep, with their rows."""
    train_frac: float = 1.0
    """Share of the training rows to learn from, of each class alike; a larger share holds the rows of a smaller one."""
    steps: int | None = None
    """Length in steps instead of epochs, rounded to whole epochs."""
    reference: bool = False
    """Do as the published code of AFT: its split, batches that are drawn once where they are few, a cosine by epoch, the last values instead of the best on validation."""
    cache: Path | None = None
    """Folder for what several trainings share, such as autoencoders; default: inside the --out of a sweep, none for a single training."""
    sweep: Mapping[str, Any] = field(default_factory=dict)
    """Train every combination, cell by cell, and choose on validation: NAME=V1,V2 of objective, teachers (1, 2 and 1+2 by their order), prec, seed (of start and order both), lr, backbone_lr, prior_lr, weight_decay; may be given several times."""

    def conditions(self) -> list[tuple[bool, str]]:
        """Return what must hold of the settings, each with what is said where it does not."""
        rate, prec = self.backbone_lr, self.prec
        return [
            *super().conditions(),
            (rate is None or 0 < rate < math.inf, f"backbone_lr must be positive and finite, got {rate}"),
            (prec is None or 0 <= prec < math.inf, f"prec must be finite and not negative, got {prec}"),
            (0 < self.prior_lr < math.inf, f"prior_lr must be positive and finite, got {self.prior_lr}"),
            (self.prior_freq > 0, f"prior_freq must be positive, got {self.prior_freq}"),
            (0 < self.train_frac <= 1, f"train_frac must lie in (0, 1], got {self.train_frac}"),
            (self.steps is None or self.steps > 0, f"steps must be positive, got {self.steps}"),
            (
                not (self.from_scratch and self.student_weights),
                "from_scratch starts from random weights, and student_weights from a file: give one of them",
            ),
            (len(set(map(str, self.teacher))) == len(self.teacher), "a teacher is named twice"),
        ]

    @property
    def named(self) -> str:
        """The objective, as its file is called."""
        return self.objective.replace("-", "_")

    @property
    def rates(self) -> tuple[float, float]:
        """Learning rates of head and student."""
        head = self.lr or RATE
        return head, self.backbone_lr or head

    @property
    def weight(self) -> float | None:
        """Weight of the distance; None where the objective has none."""
        if self.named in ("none", "concat_probe"):
            return None
        return PREC if self.prec is None else self.prec

    def online(self, *, epochs: int, augment: str) -> TrainOnlineConfig:
        """Return the online training that a student is: a backbone that learns whole, a linear head on its vector."""
        shared = {one.name: getattr(self, one.name) for one in fields(OnImages)}
        if self.reference:
            shared["schedule"] = "cosine_epochs"
        head, student = self.rates
        weights = f"random:{self.seed}" if self.from_scratch else self.student_weights
        return TrainOnlineConfig(**{
            **shared, "backbone": self.student, "weights": weights, "peft": "full", "layers": "embedding", "prompts": "none",
            "lr": head, "backbone_lr": student, "epochs": epochs, "augment": augment,
        })  # fmt: skip
