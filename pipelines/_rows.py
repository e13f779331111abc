"""Which rows of a store a head learns from, whether they can teach it anything, and what they weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.sources.cached import CachedSource, split_rows
from featurecache.stores import FeatureStore

PIECE = 65536
"""Rows of which targets are looked at together."""


def labelled_rows(store: FeatureStore, split: str) -> npt.NDArray[np.int64]:
    """Return the committed, readable, labelled rows of a split, ascending."""
    return split_rows(store, split, labelled=True)


def trainable(train: CachedSource) -> list[tuple[bool, str]]:
    """Return the conditions, as `check` takes them, under which there is something to learn."""
    path, task = train.store.path, train.store.header.task
    nothing = not len(train)
    alike = task == "classification" and not nothing and not _differ(np.asarray(train.store.table().target), train.rows)
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
    count = len(train.store.header.class_names)
    counts = np.bincount(np.asarray(train.store.table().target)[train.rows], minlength=count)
    return torch.from_numpy(len(train) / (np.count_nonzero(counts) * np.maximum(counts, 1))).float()
