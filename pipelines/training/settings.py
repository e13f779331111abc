"""How heads are trained: what every verb that trains lets users say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from featurecache.checks import check
from featurecache.sources import Order
from featurecache.threads import Computing
from pipelines.training.cells import Settings
from pipelines.training.recipe import Recipe, usual_epochs
from pipelines.training.stepping import Stepping


@dataclass(frozen=True, kw_only=True)
class Optimising(Stepping, Computing):
    """How something is trained by steps."""

    lr: float | None = None
    """Learning rate of the head at the start; default: the head's own."""
    weight_decay: float = 0.01
    """Decay of the values: decoupled from the gradient under adamw, part of it under adam and sgd."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh classes by the inverse of their frequency among the training rows."""
    seed: int = 0
    """Seed of the head's start and of dropout."""

    def conditions(self) -> list[tuple[bool, str]]:
        """Return what must hold of the settings, each with what is said where it does not."""
        return [
            (self.lr is None or 0 < self.lr < math.inf, f"lr must be positive and finite, got {self.lr}"),
            (
                0 <= self.weight_decay < math.inf,
                f"weight_decay must be finite and not negative, got {self.weight_decay}",
            ),
            *super().conditions(),
            (0 <= self.label_smoothing < 1, f"label_smoothing must lie in [0, 1), got {self.label_smoothing}"),
        ]


@dataclass(frozen=True, kw_only=True)
class Learning(Optimising):
    """Which head learns, and how: what holds of training on features and on images alike."""

    head: str = "linear"
    """Which head to train; `featurecache list heads` names them."""
    layers: str | None = None
    """Layers the head reads: last (the backbone's embedding, as a layer's token where it is one), an index, indices such as
    0,3,6-11, embedding, mean, or concat; default: the head's own."""
    tokens: str = "auto"
    """Kinds of token joined by +, of those that are there; auto is cls, else mean."""
    head_option: Mapping[str, Any] = field(default_factory=dict)
    """Option of the head k=v, e.g. start=published; may be given several times."""


STEPS = frozenset({
    "lr", "weight_decay", "label_smoothing", "class_weights", "epochs", "batch_size", "optimizer", "momentum", "nesterov",
    "schedule", "warmup_epochs", "warmup_lr", "least_lr", "clip_norm",
})  # fmt: skip
"""Settings of a training by steps."""


@dataclass(frozen=True, kw_only=True)
class Training(Learning):
    """How heads are trained on the features of a store; the configs of the verbs that do so extend it."""

    epochs: int | None = None
    """Passes over the training rows; default: as many as make 1000 steps, but at least 50 and at most 1000."""
    batch_size: int = 256
    """Rows a step."""
    standardise: bool | None = None
    """Subtract the mean of the training rows and divide by their standard deviation; default: unless the head reads raw features."""
    views: Literal["all", "clean"] = "all"
    """Views that training draws from, one a row and step, where the store has several; measuring uses the clean one."""
    order: Literal["auto", "shuffled", "blocks"] = "auto"
    """Order of the rows: a new permutation every epoch, or permuted blocks for stores larger than memory; auto decides by size."""
    device: str = "cpu"
    """Device to train on: cpu, cuda, cuda:1, auto."""

    def __post_init__(self) -> None:
        check(*self.conditions())

    def conditions(self) -> list[tuple[bool, str]]:
        """Return what must hold of the settings, each with what is said where it does not."""
        return [
            *super().conditions(),
            (self.epochs is None or self.epochs >= 0, f"epochs must not be negative, got {self.epochs}"),
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
        ]

    @property
    def leaves_steps_open(self) -> bool:
        """Whether nothing is said of how heads are trained, so that one with an optimum may be brought there."""
        said = [f for f in fields(Training) if f.name in STEPS and getattr(self, f.name) != f.default]
        return not said

    def settings(self) -> Settings:
        """Return what the cells of a sweep share."""
        return Settings(
            head=self.head, options=self.head_option, layers=self.layers, tokens=self.tokens, lr=self.lr,
            weight_decay=self.weight_decay, seed=self.seed,
        )  # fmt: skip

    def recipe(self, rows: int, order: Order) -> Recipe:
        """Return how the loop is to go over that many training rows."""
        return Recipe(
            epochs=self.passes(rows), batch_size=self.batch_size, order=order, device=self.device, **self.stepping(),
        )  # fmt: skip

    def passes(self, rows: int) -> int:
        """Return the epochs over that many training rows."""
        return usual_epochs(rows, self.batch_size) if self.epochs is None else self.epochs


def resolved(training: Training, rows: int) -> Training:
    """Return the training with its length said, as a run is to record it."""
    return replace(training, epochs=training.passes(rows))
