"""Splits drawn from digests: stable when samples are added, the same on every machine, no group divided."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from featurecache.datasets import SPLITS, ImageDataset
from featurecache.errors import DatasetError
from featurecache.seeding import unit_interval

log = logging.getLogger("featurecache")

TEST_SHARE, VAL_SHARE = 0.2, 0.1
VAL_AS_TEST = ", val as test"
"""In the rule of data whose val is the test."""


def divided(
    ids: Sequence[str],
    groups: Sequence[str],
    given: Sequence[str] | None,
    classes: npt.NDArray[np.int64],
    seed: int,
    *,
    by: str = "folders",
    spec: str = "the data",
) -> tuple[list[str], str]:
    """Return the split of every row, and the rule in words; `by` says what gave the splits that are `given`.

    `classes` (N,) is -1 where a row has no label. A row of a group goes where the digest of its group leads, so no group
    is ever in two splits. Given train and val without test, as in ImageNet, val is the test, and a tenth of train becomes
    val: what a model is chosen on cannot also be its result. `spec` names the data where that is said.

    Raises:
        DatasetError: the given splits divide a group. What is learned from one half would be asked of the other, and the
            measure would flatter; that is what groups are named for, so this is refused and not merely reported.
    """
    keys = [group or name for name, group in zip(ids, groups, strict=True)]
    grouped = any(groups)
    if given is None and (classes < 0).all():
        return [""] * len(keys), "none"
    if given is None:
        rule = f"digest{' of the group' if grouped else ''} 80/20, val 10 % of train, seed {seed}"
        return automatic(keys, classes, seed), rule
    split = list(given)
    _check_groups(groups, split)
    labelled = {name for name, number in zip(split, classes.tolist(), strict=True) if number >= 0}
    promoted = {"train", "val"} <= labelled and "test" not in split
    if promoted:
        log.info(
            "%s: there is no test split, so val is the test, and a tenth of train is held out as val, to choose on",
            spec,
        )
        split = ["test" if name == "val" else name for name in split]
    elif "val" in split or not labelled:
        return split, by
    draw_from(split, "train", "val", keys, classes, seed, VAL_SHARE)
    by = f"{by}{VAL_AS_TEST if promoted else ''}"
    return split, f"{by}, val 10 % of train{' by group' if grouped else ''}, seed {seed}"


def as_divided_before(dataset: ImageDataset, rule: str) -> ImageDataset:
    """Return a data set with the splits of an older version, where `rule` is that of a store which was made by it.

    There, given train and val stayed what they were, and nothing was the test.
    """
    new = str(dataset.identity["split_rule"])
    if VAL_AS_TEST not in new or rule != new.partition(VAL_AS_TEST)[0]:
        return dataset
    before = {"test": "val", "val": "train"}
    split = [before.get(name, name) for name in dataset.table.split]
    return replace(
        dataset, table=replace(dataset.table, split=split), identity={**dataset.identity, "split_rule": rule}
    )


def _check_groups(groups: Sequence[str], split: Sequence[str]) -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for group, name in zip(groups, split, strict=True):
        if group and name:
            places[group].add(name)
    divided_ones = [(group, sorted(names)) for group, names in places.items() if len(names) > 1]
    if divided_ones:
        shown = "; ".join(f"{group!r} in {' and '.join(names)}" for group, names in divided_ones[:5])
        raise DatasetError(
            f"the given splits divide {len(divided_ones)} groups, and samples of a group must stay together: {shown}. "
            "Correct the splits, leave them out (they are then drawn by group), or leave the groups out."
        )


def report_gaps(class_names: Sequence[str], target: npt.NDArray[np.generic], split: Sequence[str], spec: str) -> None:
    """Warn of the classes that have no image, cannot be learned or cannot be tested, one line for each set of splits."""
    where = np.asarray(split)
    counts = {name: per_class(target[where == name], len(class_names)) for name in SPLITS}
    only: dict[str, list[str]] = defaultdict(list)
    for number, label in enumerate(class_names):
        found = [name for name in SPLITS if counts[name][number]]
        if "train" not in found or "test" not in found:
            only[f"in {' and '.join(found)} only" if found else "in no split"].append(repr(label))
    for place, labels in only.items():
        shown = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
        log.warning("%s: %s: %d of %d classes (%s)", spec, place, len(labels), len(class_names), shown)


def per_class(target: npt.NDArray[np.generic], classes: int) -> npt.NDArray[np.int64]:
    """Return (C,) how many rows are of each class, from (N,) class numbers, -1 for none, or (N, C) 0 and 1."""
    if target.ndim == 2:
        return np.asarray(target.astype(np.int64).sum(0))
    numbers = target.astype(np.int64)
    return np.bincount(numbers[numbers >= 0], minlength=classes)


def automatic(
    keys: Sequence[str],
    classes: npt.NDArray[np.int64],
    seed: int,
    *,
    test: float = TEST_SHARE,
    val: float = VAL_SHARE,
) -> list[str]:
    """Return train, val or test for every labelled sample, "" for the others.

    `keys` are sample ids, or group keys where samples must not be separated. A class keeps at least one key in train:
    where all of its keys are drawn, the one drawn last, which may therefore move when the class grows. No other key ever
    moves.
    """
    split = ["train" if c >= 0 else "" for c in classes]
    draw_from(split, "train", "test", keys, classes, seed, test)
    draw_from(split, "train", "val", keys, classes, seed, val)
    return split


def draw_from(
    split: list[str],
    source: str,
    into: str,
    keys: Sequence[str],
    classes: npt.NDArray[np.int64],
    seed: int,
    share: float,
) -> None:
    """Move the keys whose digest falls below `share` from `source` to `into`; the last key of a class stays."""
    members = [i for i, name in enumerate(split) if name == source]
    draws = {key: unit_interval(key, "split", into, seed) for key in {keys[i] for i in members}}
    of_class: dict[int, set[str]] = defaultdict(set)
    for i in members:
        of_class[int(classes[i])].add(keys[i])
    kept = {max(found, key=lambda key: (draws[key], key)) for found in of_class.values()}
    for i in members:
        if draws[keys[i]] < share and keys[i] not in kept:
            split[i] = into


def draw_splits(
    ids: Sequence[str],
    groups: Sequence[str],
    classes: npt.NDArray[np.int64],
    seed: int,
    *,
    test: float = TEST_SHARE,
    val: float = VAL_SHARE,
) -> tuple[list[str], str]:
    """Return train, val or test for every row with a label, "" for the others, and the rule in words.

    `test` is a share of all labelled rows, `val` a share of those that are left for training.
    """
    keys = [group or name for name, group in zip(ids, groups, strict=True)]
    shares = f"{100 * (1 - test):g}/{100 * test:g}, val {100 * val:g} % of train"
    rule = f"digest{' of the group' if any(groups) else ''} {shares}, seed {seed}"
    return automatic(keys, classes, seed, test=test, val=val), rule


def check_groups(groups: Sequence[str], split: Sequence[str]) -> None:
    """Refuse splits that separate samples of a group.

    Raises:
        DatasetError: names the groups.
    """
    _check_groups(groups, split)
