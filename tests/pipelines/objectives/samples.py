"""A tiny student with two teachers for tests: rows in memory, one layer that learns, classes that its teachers know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featurecache.features import FeatureBatch
from featurecache.sources.cached import ordered
from featurecache.sources.joined import teacher_array
from heads import HeadSpec
from heads._checkpoint import build_head
from pipelines.objectives import Dimensions, Guidance, Material, guided
from pipelines.objectives.cross_entropy import build as likelihood
from pipelines.training.fitting import Pace, fit
from pipelines.training.recipe import Recipe
from pipelines.training.stack import Member
from tests.pipelines.one_body import OneBody

WIDTHS, STUDENT, CLASSES, PIXELS = (10, 6), 5, 3, 8
DIMENSIONS = Dimensions(STUDENT, WIDTHS, num_classes=CLASSES)


class TinyStudent(OneBody):
    """N rows of noise in which the class shows; teachers see it clearly. See `TrainedSource`."""

    def __init__(self, rows: int = 80, *, seed: int = 0, width: int = STUDENT) -> None:
        draw = torch.Generator().manual_seed(0)
        self.targets = torch.arange(rows) % CLASSES
        clear = torch.nn.functional.one_hot(self.targets, CLASSES).float()
        self.pixels = torch.randn(rows, PIXELS, generator=draw) + clear @ torch.randn(CLASSES, PIXELS, generator=draw)
        self.told = {
            teacher_array(n): clear @ torch.randn(CLASSES, width, generator=draw) + 0.3 * torch.randn(rows, width, generator=draw)
            for n, width in enumerate(WIDTHS)
        }  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Linear(PIXELS, width)

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self, batch_size: int, *, order: Any = "sequential", seed: int = 0, start: int = 0
    ) -> Iterator[FeatureBatch]:
        rows = ordered(np.arange(len(self)), order, seed)
        for first in range(start, len(rows), batch_size):
            yield self.batch(rows[first : first + batch_size])

    def batch(self, rows: Any) -> FeatureBatch:
        places = torch.from_numpy(rows)
        told = {name: values[places] for name, values in self.told.items()}
        features = self.body(self.pixels[places])
        return FeatureBatch(rows, [str(row) for row in rows], self.targets[places], {**told, "embedding": features})


def head(width: int = STUDENT) -> nn.Module:
    """Return a linear head, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_head("linear", HeadSpec(shapes={"embedding": (width,)}, num_classes=CLASSES), {})


def objective_of(name: str, source: TinyStudent, *, prec: float = 1.0, prior_freq: int = 1, **options: Any) -> Any:
    """Return an objective that has looked at the rows."""
    guidance = Guidance(likelihood=likelihood("classification"), prec=prec, prior_freq=prior_freq)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = guided(name, DIMENSIONS, guidance, options)
    made.prepare(Material(teachers={"train": source, "val": source}, student=source))
    return made


def trained(
    name: str, *, epochs: int = 4, optimizer: Any = "adam", **given: Any
) -> tuple[dict[str, Tensor], Any, TinyStudent, Pace]:
    """Train by one objective, five steps an epoch; return (student and head, objective, source, pace)."""
    source, top = TinyStudent(), head()
    objective = likelihood("classification") if name == "none" else objective_of(name, source, **given)
    recipe = Recipe(epochs=epochs, batch_size=16, optimizer=optimizer, schedule="constant")
    pace = fit([Member(top, 1e-2)], source, None, objective, recipe, "classification")
    return (
        source.state() | {f"head.{k}": v.detach().clone() for k, v in top.state_dict().items()},
        objective,
        source,
        pace,
    )
