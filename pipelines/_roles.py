"""Which split is measured, chosen on and learnt from, where this is not test, val and train as the rows have them.

Data with `train` and `val` alone are measured on `val`, and a tenth of train is held out to choose on; `--test-split` names
any other split to measure on. A store or a data set is then read as if its rows had these splits; nothing is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from featurecache.datasets import ImageDataset, RowTable
from featurecache.datasets._splits import VAL_AS_TEST
from featurecache.division import hold_out, stratify
from featurecache.errors import ConfigError
from featurecache.features import Task
from featurecache.registry import nearest
from featurecache.stores import FeatureStore

HELD_OUT = "a tenth of train"


@dataclass(frozen=True, slots=True)
class Roles:
    """How rows are read: `test` is measured, `val` is chosen on, `train` is learnt from."""

    split: Sequence[str]
    """N of train, val, test, "" for rows without a role."""
    measured: str
    """Split, as the rows have it, that is measured."""
    remark: str
    """One line that says so."""

    def record(self) -> dict[str, Any]:
        """Return what the record of a run says."""
        return {
            "splits": {
                "test": self.measured,
                "val": HELD_OUT if self.measured == "val" else "val",
                "remark": self.remark,
            }
        }


def record_roles(roles: Roles | None) -> dict[str, Any]:
    """Return what the record of a run says of its splits; nothing where they are those of the rows."""
    return roles.record() if roles else {}


def assign_roles(table: RowTable, task: Task, test_split: str | None, where: str) -> Roles | None:
    """Return how the rows of a table are read; None: as their splits say.

    Without `test_split`, `val` is measured where no labelled row is in `test`.

    Raises:
        ConfigError: `test_split` is no split of the rows that can be measured; names those there are.
    """
    column, labelled = [str(name) for name in table.split], stratify(table, task) >= 0
    known = sorted({name for name, is_labelled in zip(column, labelled, strict=True) if name and is_labelled})
    if test_split is not None:
        _check_measurable(test_split, known, where)
        measured = test_split
    elif "test" in known or not {"train", "val"} <= set(known):
        return None
    else:
        measured = "val"
    if measured == "test":
        return None
    split = ["test" if name == measured else "" if name == "test" else name for name in column]
    if measured == "val":
        split = hold_out(table, task, split)
    asked = "" if test_split is not None else "there is no labelled test split, so "
    chosen = f", and {HELD_OUT} is held out to choose on" if measured == "val" else ""
    return Roles(split, measured, f"{where}: {asked}{measured} is measured as the test{chosen}")


def _check_measurable(name: str, known: Sequence[str], where: str) -> None:
    there = ", ".join(known) or "none"
    if name == "train":
        raise ConfigError([
            "--test-split train: heads learn from train, so it cannot be the test. To divide the rows anew: featurecache split STORE"
        ])  # fmt: skip
    if name not in known:
        raise ConfigError([
            f"--test-split {name}: {where} has no labelled rows in a split {name!r}.{nearest(name, known)} It has {there}"
        ])  # fmt: skip


class _InRoles:
    """A store whose rows are read in other splits; whatever is not said here is the store's own."""

    def __init__(self, store: FeatureStore, split: Sequence[str]) -> None:
        self._store, self.path, self.notes, self.header = store, store.path, store.notes, store.header
        texts = np.asarray(split, dtype=np.dtypes.StringDType())
        self._table = dataclasses.replace(store.table(), split=cast(Sequence[str], texts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def table(self) -> RowTable:
        """Return the row table with the splits that rows are read in."""
        return self._table

    def column(self, name: str, rows: slice) -> npt.NDArray[Any]:
        """Return some rows of a column of the row table."""
        return np.asarray(self._table.split[rows]) if name == "split" else self._store.column(name, rows)


def read_store_in_roles(store: FeatureStore, test_split: str | None) -> tuple[FeatureStore, Roles | None]:
    """Return the store as training and measuring read it, and how its splits are read; None: as they are.

    Raises:
        ConfigError: there is no such split to measure.
    """
    test_split = _as_divided(store.header.dataset, test_split)
    roles = assign_roles(store.table(), store.header.task, test_split, str(store.path))
    return (store, None) if roles is None else (cast(FeatureStore, _InRoles(store, roles.split)), roles)


def _as_divided(identity: Mapping[str, Any], test_split: str | None) -> str | None:
    """Return the split that a user means who says `val` of data whose `val` has become the test already."""
    return "test" if test_split == "val" and VAL_AS_TEST in str(identity.get("split_rule", "")) else test_split


def read_data_in_roles(dataset: ImageDataset, test_split: str | None) -> tuple[ImageDataset, Roles | None]:
    """Return the same of a data set.

    Raises:
        ConfigError: there is no such split to measure.
    """
    test_split = _as_divided(dataset.identity, test_split)
    roles = assign_roles(dataset.table, dataset.task, test_split, dataset.name)
    if roles is None:
        return dataset, None
    return dataclasses.replace(dataset, table=dataclasses.replace(dataset.table, split=list(roles.split))), roles
