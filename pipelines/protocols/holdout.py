"""The store's own splits, or k folds by class that separate no group; several seeds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import KFold, StratifiedGroupKFold

from featurecache.checks import check
from featurecache.errors import StoreContentsError
from featurecache.seeding import seed_of
from featurecache.stores import FeatureStore
from pipelines._rows import labelled_rows
from pipelines.protocols import Fold, Part, Plan, Rows, Trial, rows_of

VALIDATION_FOLDS = 10
"""One of so many parts of what is not tested is validation; of fewer where there are fewer groups."""


def plan(
    stores: Sequence[FeatureStore], *, folds: int | None = None, seed: tuple[int, ...] = (0,), test: str | None = None
) -> Plan:
    """Return one trial a seed on the store's splits, or one a seed and fold of all labelled rows.

    Args:
        stores: one.
        folds: parts that are the test in turn; None: the splits of the store, of which `val` chooses.
        seed: of the heads' start, of the row order, and of the folds.
        test: split that is measured; default test. With folds there is none.

    Raises:
        ConfigError, StoreContentsError: too few folds; no such split; a class with fewer groups than folds.
    """
    (store,) = stores
    check(
        (folds is None or folds > 1, f"folds must be at least 2, got {folds}"),
        (folds is None or test is None, "with folds every row is a test row once: test does not apply"),
        (
            test not in ("train", "val"),
            f"{test} rows are learnt from or chosen on, so they cannot be the test"
            + (". To measure val and choose on a tenth of train: --test-split val" if test == "val" else ""),
        ),
    )
    if folds is None:
        return Plan(trials=[_own(store, number, test or "test") for number in seed], over=("seed",))
    trials = [_fold(store, folds, number, place) for number in seed for place in range(folds)]
    return Plan(trials=trials, over=("seed", "fold"))


def _own(store: FeatureStore, seed: int, test: str) -> Trial:
    train, measured = rows_of(store, "train"), rows_of(store, test)
    chosen = labelled_rows(store, "val")
    fold = Fold(
        name=f"seed-{seed}", train=Part(store, train), seed=seed,
        validation=Part(store, chosen) if len(chosen) else None,
    )  # fmt: skip
    return Trial(name=fold.name, labels={"seed": seed}, fold=fold, tests={"test": Part(store, measured)})


def _fold(store: FeatureStore, folds: int, seed: int, place: int) -> Trial:
    rows = rows_of(store)
    names, _ = _groups(store, rows)
    if len(names) < max(folds, 3):
        raise StoreContentsError(
            f"{store.path} has {len(names)} groups of rows, too few for {folds} folds and a validation beside them."
        )
    _need_groups(store, rows)
    parts = parted(store, rows, folds, seed_of("holdout", seed, folds))
    rest = np.sort(np.concatenate([part for number, part in enumerate(parts) if number != place]))
    chosen = parted(store, rest, VALIDATION_FOLDS, seed_of("holdout validation", seed, folds, place))[0]
    fold = Fold(
        name=f"seed-{seed}-fold-{place}", train=Part(store, np.setdiff1d(rest, chosen)), seed=seed,
        validation=Part(store, chosen),
    )  # fmt: skip
    tests = {"test": Part(store, parts[place])}
    return Trial(name=fold.name, labels={"seed": seed, "fold": place}, fold=fold, tests=tests)


def _groups(store: FeatureStore, rows: Rows) -> tuple[npt.NDArray[Any], Rows]:
    """Return the names of the groups, and the group of every row; a row without one is its own."""
    column = np.asarray(store.table().group)[rows]
    return np.unique([name or f"\0{row}" for row, name in zip(rows.tolist(), column, strict=True)], return_inverse=True)


def parted(store: FeatureStore, rows: Rows, parts: int, seed: int) -> list[Rows]:
    """Return the rows in parts that hold whole groups and, of a classification, every class alike; fewer if groups are fewer."""
    (names, members), state = _groups(store, rows), seed % 2**32
    parts = min(parts, len(names))
    if store.header.task != "classification":
        drawn = KFold(parts, shuffle=True, random_state=state).split(names)
        return [rows[np.isin(members, some)] for _, some in drawn]
    targets = np.asarray(store.table().target)[rows]
    parts = min(parts, int(np.bincount(targets).max()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a class with fewer rows than parts: some parts are without it
        found = list(StratifiedGroupKFold(parts, shuffle=True, random_state=state).split(rows, targets, members))
    return [rows[np.sort(places)] for _, places in found]


def _need_groups(store: FeatureStore, rows: Rows) -> None:
    """Refuse a class that cannot be learnt from and tested."""
    if store.header.task != "classification":
        return
    names = store.header.class_names
    pairs = np.unique(np.stack([np.asarray(store.table().target)[rows], _groups(store, rows)[1]]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(names))
    few = [names[i] for i in np.flatnonzero(counts == 1)]
    if few:
        raise StoreContentsError(
            f"{store.path} cannot be divided into folds: all rows of {', '.join(few)} are in one group, so that they would "
            "be learnt from or tested, not both."
        )
