"""How the rows of a finished store are divided into train, val and test: drawn anew, by a table, or read in other roles.

A store keeps in the identity of its data the rule by which `split` divided it, so that an extraction that comes again leaves
the splits as they are, and new samples are divided by the same rule.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.datasets import ImageDataset, RowTable
from featurecache.datasets._splits import VAL_SHARE, check_groups, draw_from, draw_splits
from featurecache.features import Header, Task

log = logging.getLogger("featurecache")

DIVISION = "division"
"""Key of the identity of a data set under which a store keeps how `split` divided it."""
HELD_OUT = 0
"""Seed of the rows of train that are held out where `val` is measured."""


def stratify(table: RowTable, task: Task) -> npt.NDArray[np.int64]:
    """Return (N,) class of every row, 0 for all labelled rows where there are no classes; -1: without a label."""
    target = np.asarray(table.target)
    if task == "classification":
        return target.astype(np.int64)
    if task == "multilabel":  # 0 and 1 have no value that says "unlabelled": only the missing split does
        labelled = np.array([str(name) != "" for name in table.split])
    else:
        labelled = ~np.isnan(target.reshape(len(target), -1)).any(1)
    return np.where(labelled, 0, -1).astype(np.int64)


def draw_division(table: RowTable, task: Task, *, seed: int, test: float, val: float) -> tuple[list[str], str]:
    """Return the split of every row by digest of its id, or of its group, and the rule in words.

    With the shares of an extraction it is what `extract-features --split-seed SEED` gives data that brings no splits.
    """
    ids, groups = _texts(table.sample_id), _texts(table.group)
    return draw_splits(ids, groups, stratify(table, task), seed, test=test, val=val)


def hold_out(
    table: RowTable, task: Task, split: Sequence[str], *, seed: int = HELD_OUT, share: float = VAL_SHARE
) -> list[str]:
    """Return the splits with a share of `train` as `val`, by the digest rule of extraction; groups stay together."""
    held, ids, groups = list(split), _texts(table.sample_id), _texts(table.group)
    keys = [group or name for name, group in zip(ids, groups, strict=True)]
    draw_from(held, "train", "val", keys, stratify(table, task), seed, share)
    return held


def check_division(table: RowTable, split: Sequence[str]) -> None:
    """Refuse splits that separate samples of a group.

    Raises:
        DatasetError: names the groups.
    """
    check_groups(_texts(table.group), split)


def adopt_division(held: Header, table: Callable[[], RowTable], dataset: ImageDataset) -> ImageDataset:
    """Return a data set divided as its store was by `split`; itself where it was not.

    Samples that the store does not hold are divided by the same rule where it is one by digest, else they are in no split:
    a table says nothing of them.
    """
    rule: Mapping[str, Any] | None = held.dataset.get(DIVISION)
    if rule is None:
        return dataset
    identity = {**dataset.identity, "split_rule": held.dataset["split_rule"], DIVISION: rule}
    if "seed" in rule:
        split, _ = draw_division(dataset.table, dataset.task, seed=rule["seed"], test=rule["test"], val=rule["val"])
    else:
        known = {str(name): str(part) for name, part in zip(table().sample_id, table().split, strict=True)}
        split = [known.get(str(name), "") for name in dataset.table.sample_id]
        new = sum(str(name) not in known for name in dataset.table.sample_id)
        if new:
            log.warning(
                "%d samples are in no split: the table of `split` does not name them. Divide the store again", new
            )
    return dataclasses.replace(dataset, identity=identity, table=dataclasses.replace(dataset.table, split=split))


def _texts(values: Sequence[str]) -> list[str]:
    return [str(value) for value in values]
