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


def labelled_rows(store: FeatureStore, split: str) -> npt.NDArray[np.int64]:
    """Return the committed, readable, labelled rows of a split, ascending."""
    rows = split_rows(store, split)
    return rows[has_target(np.asarray(store.table().target)[rows])]


def has_target(targets: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return (N,) whether a row is labelled, of (N,) or (N, K) targets."""
    return targets >= 0 if targets.ndim == 1 else ~np.isnan(targets.astype(np.float64)).any(1)


def trainable(train: CachedSource) -> list[tuple[bool, str]]:
    """Return the conditions, as `check` takes them, under which there is something to learn."""
    seen = np.asarray(train.store.table().target)[train.rows]
    return teachable(seen, train.store.header.task, str(train.store.path))


def teachable(seen: npt.NDArray[Any], task: Task, path: str) -> list[tuple[bool, str]]:
    """Return the same conditions for (N,) or (N, K) targets of the training rows of what is called `path`."""
    nothing, alike = not len(seen), task == "classification" and len(seen) > 0 and bool((seen == seen[0]).all())
    return [
        (not nothing, f"{path} holds no labelled training rows, so there is nothing to learn from"),
        (not alike, f"all training rows of {path} are of one class, so there is nothing to tell apart"),
    ]


def class_weights(train: CachedSource) -> Tensor:
    """Return (C,) weights by the inverse of the classes' frequency; their mean over the rows is one."""
    return balanced(np.asarray(train.store.table().target)[train.rows], len(train.store.header.class_names))


def balanced(targets: npt.NDArray[np.int64], classes: int) -> Tensor:
    """Return (C,) weights of classes by the inverse of how often they are among (N,) targets."""
    counts = np.bincount(targets, minlength=classes)
    return torch.from_numpy(len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1))).float()
