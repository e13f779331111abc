"""Rows of any source with what teachers said of them: features of other backbones, joined from their stores by sample id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurecache.datasets import ImageDataset
from featurecache.features import FeatureBatch
from featurecache.sources import FeatureSource, Order, ParameterGroup, TrainedSource
from featurecache.sources.cached import Walk
from featurecache.sources.in_memory import InMemory
from featurecache.sources.teachers import Rows, Teacher

PREFIX = "teacher/"


def teacher_array(number: int) -> str:
    """Return the name under which batches carry the rows of a teacher, the first being 0."""
    return f"{PREFIX}{number:02d}"


def teachers_of(batch: FeatureBatch) -> list[Tensor]:
    """Return the rows of every teacher of a batch, (B, D) each, in their order."""
    return [batch.arrays[name] for name in sorted(batch.arrays) if name.startswith(PREFIX)]


class JoinedSource:
    """Batches of a source, each row with what the teachers say of it. See `FeatureSource`."""

    def __init__(self, source: FeatureSource, teachers: Sequence[Teacher]) -> None:
        """Join teachers, staged for the rows of the source, in their order.

        Where the source's images are views that the teachers keep too, their rows are of the same view; else of the clean one.
        """
        self.source, self.teachers = source, tuple(teachers)
        self.constants = source.constants

    def __len__(self) -> int:
        return len(self.source)

    def batches(
        self, batch_size: int, *, order: Order = "sequential", seed: int = 0, start: int = 0
    ) -> Iterator[FeatureBatch]:
        """Yield the batches of the source with the arrays of the teachers."""
        view_of: Any = getattr(self.source, "view_of", None)
        view = 0 if view_of is None else view_of(order, seed)
        for batch in self.source.batches(batch_size, order=order, seed=seed, start=start):
            told = {teacher_array(n): one.rows(batch.rows, view) for n, one in enumerate(self.teachers)}
            yield replace(batch, arrays={**batch.arrays, **told})

    def walk(self, batch_size: int) -> Walk:
        """Return batches that can be walked more than once."""
        return Walk(self, batch_size)


class LearningJoinedSource(JoinedSource):
    """The same over features that learn. See `TrainedSource`."""

    source: Any

    def groups(self) -> list[ParameterGroup]:
        """Return the parameters of the source: teachers have none."""
        found: list[ParameterGroup] = self.source.groups()
        return found

    def train(self, mode: bool) -> None:
        """Set training mode."""
        self.source.train(mode)

    def state(self) -> dict[str, Tensor]:
        """Return copies of all that training changes in the source."""
        found: dict[str, Tensor] = self.source.state()
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set what `state` returned."""
        self.source.load(state)

    def averages(self) -> list[Tensor]:
        """Return what of the source follows the rows that were seen."""
        found: list[Tensor] = self.source.averages()
        return found


def joined(source: FeatureSource, teachers: Sequence[Teacher]) -> JoinedSource:
    """Return a source with teachers, which learns where it does."""
    return (LearningJoinedSource if isinstance(source, TrainedSource) else JoinedSource)(source, teachers)


def taught(dataset: ImageDataset, rows: Rows, teachers: Sequence[Teacher]) -> JoinedSource:
    """Return what teachers say of some rows of a data set, with the targets; no image is read."""
    table = dataset.table
    alone = InMemory({}, torch.from_numpy(np.asarray(table.target)), rows, np.asarray(table.sample_id))
    return JoinedSource(alone, teachers)
