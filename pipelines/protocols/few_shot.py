"""K images of every class to learn from, min(K, 4) to choose on, all test rows to measure; several draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featurecache.checks import check
from featurecache.errors import StoreContentsError
from featurecache.seeding import generator
from featurecache.sources.cached import split_rows
from featurecache.stores import FeatureStore
from pipelines._rows import labelled_rows
from pipelines.protocols import Fold, Part, Plan, Rows, Trial, known_classes, need_classes, rows_of

PAPER = "Learning to Prompt for Vision-Language Models (2022)"
ARGUMENT = "shots"
MOST_CHOSEN = 4
"""Rows of a class that validation has at most."""


def plan(
    stores: Sequence[FeatureStore], *, shots: tuple[int, ...] = (1, 2, 4, 8, 16), seed: tuple[int, ...] = (1, 2, 3)
) -> Plan:
    """Return one trial for every number of shots and seed.

    Raises:
        ConfigError, StoreContentsError: no classes, or too few rows of one for the shots.
    """
    (store,) = stores
    check((min(shots) > 0, f"shots must be positive, got {min(shots)}"))
    need_classes(store, "few-shot")
    test = Part(store, rows_of(store, "test"))
    trials = []
    for count in shots:
        for number in seed:
            fold = drawn_fold(store, count, number, known_classes(store, rows_of(store, "train")))
            labels = {"shots": count, "seed": number}
            trials.append(Trial(name=fold.name, labels=labels, fold=fold, tests={"test": test}))
    return Plan(trials=trials, over=("seed",), curve="shots" if len(shots) > 1 else "")


def drawn_fold(
    store: FeatureStore, shots: int, seed: int, classes: Sequence[int], view: FeatureStore | None = None
) -> Fold:
    """Return K rows of each of `classes` and a validation of min(K, 4), a fixed function of (fingerprint, shots, seed).

    Where the split `val` has too few rows of a class, those of `train` that are left, of other groups, make it up.
    `view` is what the fold's parts read; None: the store.

    Raises:
        StoreContentsError: names every class that has too few rows, and how many.
    """
    table = store.table()
    targets, groups = np.asarray(table.target), np.asarray(table.group)
    train, val = rows_of(store, "train"), labelled_rows(store, "val")
    learnt = {one: _drawn(store, train[targets[train] == one], ("train", shots, seed))[:shots] for one in classes}
    _enough(store, learnt, shots, "train")
    taken = np.concatenate(list(learnt.values()))
    seen = set(groups[taken].tolist()) - {""}
    left = np.array([row for row in np.setdiff1d(train, taken) if groups[row] not in seen], dtype=np.int64)
    wanted = min(shots, MOST_CHOSEN)
    chosen = {
        one: np.concatenate([
            _drawn(store, pool[targets[pool] == one], ("val", shots, seed)) for pool in (val, left)
        ])[:wanted] for one in classes
    }  # fmt: skip
    _enough(store, chosen, wanted, "train and val beside them")
    read = view or store
    every = split_rows(store, "train")
    return Fold(
        name=f"shots-{shots}-seed-{seed}", train=Part(read, np.sort(taken)), seed=seed,
        validation=Part(read, np.sort(np.concatenate(list(chosen.values())))),
        standardise_by=Part(read, every[np.isin(targets[every], [*classes, -1])]),
    )  # fmt: skip


def _drawn(store: FeatureStore, rows: Rows, parts: tuple[object, ...]) -> Rows:
    """Return the rows in an order that depends on their ids and not on where they lie."""
    ids = np.asarray(store.table().sample_id)
    known = sorted(rows.tolist(), key=lambda row: str(ids[row]))
    name = str(ids[known[0]]) if known else ""
    order = generator("few-shot", store.header.dataset["fingerprint"], *parts, name).permutation(len(known))
    return np.asarray(known, dtype=np.int64)[order]


def _enough(store: FeatureStore, drawn: dict[int, Rows], wanted: int, where: str) -> None:
    names = store.header.class_names
    few = [f"{names[one]} ({len(rows)})" for one, rows in drawn.items() if len(rows) < wanted]
    if few:
        raise StoreContentsError(
            f"{store.path} has too few images for {wanted} of every class in {where}: {', '.join(few)}. Take fewer shots."
        )
