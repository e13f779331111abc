"""Which rows of a store a head learns from, whether they can teach it anything, and what they weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.features import Task
from featurecache.sources.cached import CachedSource, split_rows
from featurecache.stores import FeatureStore

PIECE = 65536
"""Rows of which targets are looked at together."""


def labelled_rows(store: FeatureStore, split: str) -> npt.NDArray[np.int64]:
    """Return the committed, readable, labelled rows of a split, ascending."""
    return split_rows(store, split, labelled=True)


def every_training_row(train: CachedSource) -> CachedSource:
    """Return all readable rows of the split train, labelled or not, with the arrays of a source that learns from some."""
    return CachedSource(train.store, train.arrays, split_rows(train.store, "train"))


def trainable(train: CachedSource) -> list[tuple[bool, str]]:
    """Return the conditions, as `check` takes them, under which there is something to learn."""
    path, task = str(train.store.path), train.store.header.task
    nothing = not len(train)
    alike = task == "classification" and not nothing and not _differ(np.asarray(train.store.table().target), train.rows)
    return _conditions(path, nothing, alike)


def teachable(seen: npt.NDArray[Any], task: Task, path: str) -> list[tuple[bool, str]]:
    """Return the same conditions for (N,) or (N, K) targets of the training rows of what is called `path`."""
    nothing = not len(seen)
    return _conditions(path, nothing, task == "classification" and not nothing and bool((seen == seen[0]).all()))


def _conditions(path: str, nothing: bool, alike: bool) -> list[tuple[bool, str]]:
    return [
        (not nothing, f"{path} holds no labelled training rows, so there is nothing to learn from"),
        (not alike, f"all training rows of {path} are of one class, so there is nothing to tell apart"),
    ]


def _differ(targets: npt.NDArray[Any], rows: npt.NDArray[np.integer[Any]]) -> bool:
    """Return whether some rows have different targets; looks at no more of them at a time than it must."""
    pieces = (targets[rows[start : start + PIECE]] for start in range(0, len(rows), PIECE))
    return any(bool((piece != targets[rows[0]]).any()) for piece in pieces)


def class_weights(train: CachedSource) -> Tensor:
    """Return (C,) weights by the inverse of the classes' frequency; their mean over the rows is one."""
    return balanced(np.asarray(train.store.table().target)[train.rows], len(train.store.header.class_names))


def balanced(targets: npt.NDArray[np.int64], classes: int) -> Tensor:
    """Return (C,) weights of classes by the inverse of how often they are among (N,) targets."""
    counts = np.bincount(targets, minlength=classes)
    return torch.from_numpy(len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1))).float()


def share_of(
    rows: npt.NDArray[np.int64], targets: npt.NDArray[Any], count: int, task: Task, seed: int
) -> npt.NDArray[np.int64]:
    """Return at most `count` of some rows, ascending, drawn by `seed`; of each class its share where there are classes."""
    if count >= len(rows):
        return rows
    drawn = rows[np.random.default_rng(seed).permutation(len(rows))]
    if (
        task == "classification"
    ):  # the n-th of a class of m stands at n / m of the way, so that any beginning has its share
        classes, sizes = np.unique(targets[drawn], return_inverse=True, return_counts=True)[1:]
        places = np.empty(len(drawn))
        for label, size in enumerate(sizes):
            places[classes == label] = (np.arange(size) + 0.5) / size
        drawn = drawn[np.argsort(places, kind="stable")]
    return np.sort(drawn[:count])
