"""Which rows of a store a head learns from, whether they can teach it anything, and what they weigh."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.sources.cached import CachedSource, split_rows
from featurecache.stores import FeatureStore


def labelled_rows(store: FeatureStore, split: str) -> npt.NDArray[np.int64]:
    """Return the committed, readable, labelled rows of a split, ascending."""
    rows = split_rows(store, split)
    targets = np.asarray(store.table().target)[rows]
    known = targets >= 0 if targets.ndim == 1 else ~np.isnan(targets.astype(np.float64)).any(1)
    return rows[known]


def trainable(train: CachedSource) -> list[tuple[bool, str]]:
    """Return the conditions, as `check` takes them, under which there is something to learn."""
    path, task = train.store.path, train.store.header.task
    seen = np.asarray(train.store.table().target)[train.rows]
    nothing, alike = not len(train), task == "classification" and len(seen) > 0 and bool((seen == seen[0]).all())
    return [
        (not nothing, f"{path} holds no labelled training rows, so there is nothing to learn from"),
        (not alike, f"all training rows of {path} are of one class, so there is nothing to tell apart"),
    ]


def class_weights(train: CachedSource) -> Tensor:
    """Return (C,) weights by the inverse of the classes' frequency; their mean over the rows is one."""
    count = len(train.store.header.class_names)
    counts = np.bincount(np.asarray(train.store.table().target)[train.rows], minlength=count)
    return torch.from_numpy(len(train) / (np.count_nonzero(counts) * np.maximum(counts, 1))).float()
