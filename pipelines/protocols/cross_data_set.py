"""Learn on the first store, measure on the others, which hold the same features of other data; classes match by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from featurecache.checks import check
from featurecache.errors import ConfigError, StoreContentsError
from featurecache.features import differences
from featurecache.stores import FeatureStore
from pipelines._rows import labelled_rows
from pipelines.protocols import Fold, Part, Plan, Rows, Trial, need_classes, of_classes, rows_of
from pipelines.protocols.few_shot import drawn_fold

PAPER = "Conditional Prompt Learning for Vision-Language Models (2022)"
TOGETHER = True

BATCHING = ("batch_size",)
"""Parts of a backbone's identity in which two stores of the same features may differ."""


def plan(
    stores: Sequence[FeatureStore],
    *,
    classes: Literal["shared", "own"] = "shared",
    shots: int | None = None,
    split: Literal["test", "all"] = "test",
    seed: tuple[int, ...] = (1, 2, 3),
) -> Plan:
    """Return one trial a seed, with a test for the first store and for each of the others.

    Args:
        stores: the first one is learnt from.
        classes: "shared": rows of the others count where their class is one of the first store's, by name; "own": the head
            is built anew for the classes of each store, with the values it has learnt.
        shots: learn from so many rows of a class, drawn as by few-shot; None: from all of `train`.
        split: rows of the other stores that are measured.
        seed: of the heads' start, the row order, and the draw of the shots.

    Raises:
        ConfigError, StoreContentsError: one store only, other features, no class in common.
    """
    first, *others = stores
    check(
        (bool(others), "cross-data-set needs a store to learn from and at least one other to measure"),
        (shots is None or shots > 0, f"shots must be positive, got {shots}"),
    )
    for store in stores:
        need_classes(store, "cross-data-set")
    _same_features(first, others)
    tests = {"own": Part(first, rows_of(first, "test"))} if "test" in np.asarray(first.table().split) else {}
    for store in others:
        tests[_unused(store.path.stem, tests)] = _matched(first, store, classes, split)
    trials = []
    for number in seed:
        fold = _all(first, number) if shots is None else drawn_fold(first, shots, number, _learnt(first))
        trials.append(Trial(name=fold.name, labels={"seed": number}, fold=fold, tests=tests))
    return Plan(trials=trials, over=("seed",))


def _learnt(store: FeatureStore) -> list[int]:
    return [int(one) for one in np.unique(np.asarray(store.table().target)[rows_of(store, "train")])]


def _all(store: FeatureStore, seed: int) -> Fold:
    chosen = labelled_rows(store, "val")
    return Fold(
        name=f"seed-{seed}", train=Part(store, rows_of(store, "train")), seed=seed,
        validation=Part(store, chosen) if len(chosen) else None,
    )  # fmt: skip


def _same_features(first: FeatureStore, others: Sequence[FeatureStore]) -> None:
    ours = {key: value for key, value in first.header.backbone.items() if key not in BATCHING}
    problems = []
    for store in others:
        theirs = {key: value for key, value in store.header.backbone.items() if key not in BATCHING}
        unlike = [f"{name}: {a!r}, {b!r}" for name, a, b in differences(ours, theirs)]
        if unlike:
            problems.append(f"{store.path} holds other features than {first.path} ({'; '.join(unlike)})")
    if problems:
        raise ConfigError(problems)


def _matched(first: FeatureStore, store: FeatureStore, classes: str, split: str) -> Part:
    rows: Rows = rows_of(store) if split == "all" else rows_of(store, split)
    if classes == "own":
        return Part(store, rows)
    view = of_classes(store, first.header.class_names)
    known = rows[np.asarray(view.table().target)[rows] >= 0]
    if not len(known):
        raise StoreContentsError(
            f"no row of {store.path} is of a class of {first.path}: the names of the classes have nothing in common. A head "
            "that speaks of no class in particular, such as zero_shot, can be asked for others: cross-data-set?classes=own"
        )
    return Part(view, known)


def _unused(name: str, taken: dict[str, Part]) -> str:
    number = 2
    found = name
    while found in taken:
        found, number = f"{name}-{number}", number + 1
    return found
