"""Rows of a store that a protocol may use, or why there are none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featurecache.errors import StoreContentsError
from featurecache.registry import nearest
from featurecache.sources.cached import split_rows
from featurecache.stores import FeatureStore
from pipelines._rows import labelled_rows
from pipelines.protocols._trials import Rows


def rows_of(store: FeatureStore, *splits: str) -> Rows:
    """Return the readable, labelled rows of the splits (none named: of all), ascending.

    Raises:
        StoreContentsError: the store is unfinished, or has no such split, or no labelled row in it.
    """
    known = sorted({str(name) for name in np.asarray(store.table().split)})
    for split in splits:
        if split not in known:
            there = ", ".join(name or '""' for name in known)
            raise StoreContentsError(
                f"{store.path} has no split {split!r}.{nearest(split, known)} It has {there}. Name one of these, or divide "
                "the rows anew: run-protocol holdout?folds=5"
            )
    rows = [labelled_rows(store, split) for split in splits or known]
    found = np.unique(np.concatenate(rows)) if rows else split_rows(store)
    if not len(found):
        raise StoreContentsError(f"{store.path} has no labelled row in {' or '.join(splits) or 'any split'}.")
    return found


def need_classes(store: FeatureStore, protocol: str) -> npt.NDArray[np.int64]:
    """Return the (N,) classes of all rows.

    Raises:
        StoreContentsError: the task has none.
    """
    if store.header.task != "classification":
        raise StoreContentsError(
            f"{protocol} draws rows by class, and {store.path} holds a {store.header.task} task. Take holdout?folds=5."
        )
    return np.asarray(store.table().target, dtype=np.int64)


def known_classes(store: FeatureStore, rows: Rows) -> list[int]:
    """Return the classes that the rows are of, ascending."""
    return [int(number) for number in np.unique(np.asarray(store.table().target)[rows])]
