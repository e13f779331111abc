"""The first half of the sorted classes is learnt with K shots; both halves are tested; the harmonic mean is reported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from featurecache.checks import check
from featurecache.errors import StoreContentsError
from featurecache.stores import FeatureStore
from pipelines.protocols import Fold, Part, Plan, Trial, known_classes, need_classes, of_classes, rows_of
from pipelines.protocols.few_shot import drawn_fold

PAPER = "Conditional Prompt Learning for Vision-Language Models (2022)"
ARGUMENT = "shots"


def plan(stores: Sequence[FeatureStore], *, shots: tuple[int, ...] = (16,), seed: tuple[int, ...] = (1, 2, 3)) -> Plan:
    """Return one trial for every number of shots and seed, with the tests `base` and `new`.

    Classes are in the order of their numbers, which is that of their names in a folder; the first ceil(n / 2) are base.
    Each half is numbered from 0. For the new half the head is built anew, with the values it has learnt and other classes.

    Raises:
        ConfigError, StoreContentsError: fewer than four classes, or too few rows of one for the shots.
    """
    (store,) = stores
    check((min(shots) > 0, f"shots must be positive, got {min(shots)}"))
    targets, tested = need_classes(store, "base-to-new"), rows_of(store, "test")
    classes = sorted({*known_classes(store, rows_of(store, "train")), *known_classes(store, tested)})
    if len(classes) < 4:
        raise StoreContentsError(f"{store.path} has {len(classes)} classes; two halves of two need at least 4.")
    half = math.ceil(len(classes) / 2)
    halves = {"base": classes[:half], "new": classes[half:]}
    views = {name: of_classes(store, [store.header.class_names[i] for i in some]) for name, some in halves.items()}
    tests = {name: Part(views[name], tested[np.isin(targets[tested], some)]) for name, some in halves.items()}
    trials = []
    for count in shots:
        for number in seed:
            fold: Fold = drawn_fold(store, count, number, halves["base"], views["base"])
            labels = {"shots": count, "seed": number}
            trials.append(Trial(name=fold.name, labels=labels, fold=fold, tests=tests))
    curve = "shots" if len(shots) > 1 else ""
    return Plan(trials=trials, over=("seed",), derived={"harmonic mean": harmonic}, curve=curve)


def harmonic(values: Mapping[str, float]) -> float:
    """Return the harmonic mean; 0 where a value is 0."""
    numbers = list(values.values())
    return len(numbers) / sum(1 / value for value in numbers) if all(value > 0 for value in numbers) else 0.0
