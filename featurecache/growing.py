"""A data set that has grown since its store was made: which samples are new, and the rows in the order of the store.

Row i of a store is the same sample for ever. So new samples come behind the old ones, in the order of the data set, and an
extraction reads the data set in the order of its store.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.datasets import ImageDataset, RowTable, fingerprint_of_rows
from featurecache.errors import StoreMismatchError
from featurecache.features import Header

log = logging.getLogger("featurecache")


@dataclass(frozen=True, slots=True)
class Picked:
    """Reads the samples of a data set in another order; worker processes can be sent it."""

    read: Callable[[int], Any]
    rows: npt.NDArray[np.int64]

    def __call__(self, row: int) -> Any:
        """Return what lies at the place `row` of those that were picked."""
        return self.read(int(self.rows[row]))


def arranged(dataset: ImageDataset, table: RowTable) -> ImageDataset:
    """Return the data set with the rows of a store's table, which names the same samples in its own order and splits."""
    if list(table.sample_id) == list(dataset.table.sample_id):
        return dataset
    place = {name: row for row, name in enumerate(dataset.table.sample_id)}
    rows = np.array([place[str(name)] for name in table.sample_id], np.int64)
    return dataclasses.replace(
        dataset, table=table, read=Picked(dataset.read, rows), content=Picked(dataset.content, rows),
        measures=[dataset.measures[row] for row in rows] if dataset.measures else (),
    )  # fmt: skip


def new_samples(held: Header, table: RowTable, dataset: ImageDataset) -> list[int]:
    """Return the rows of a data set that a store does not hold; [] where it is not that of the store, grown.

    It is the same data set by name and rule of the split, and has samples that the store has not.
    """
    ours, theirs = dict(dataset.identity), dict(held.dataset)
    for identity in (ours, theirs):
        identity["fingerprint"] = str(identity.get("fingerprint")).rpartition(":")[0]
        identity.pop("rows", None)
    known = {str(name) for name in table.sample_id}
    if ours != theirs or not known & set(dataset.table.sample_id):
        return []
    return [row for row, name in enumerate(dataset.table.sample_id) if name not in known]


def grown_table(path: Path, held: Header, table: RowTable, dataset: ImageDataset, new: Sequence[int]) -> RowTable:
    """Return the table of a store after it has taken in the new rows of a data set; old rows keep what is known of them.

    Raises:
        StoreMismatchError: a sample that the store holds is gone, or is not what it was; names the first.
    """
    place = {name: row for row, name in enumerate(dataset.table.sample_id)}
    gone = [str(name) for name in table.sample_id if str(name) not in place]
    if gone:
        _refuse(path, f"{len(gone)} samples of the store are gone from the data, the first is {gone[0]!r}")
    if dataset.class_names != held.class_names:
        more = sorted(set(dataset.class_names) - set(held.class_names)) or list(dataset.class_names)
        _refuse(path, f"its classes are others (such as {more[0]!r}), and the numbers of the classes would change")
    rows = [place[str(name)] for name in table.sample_id]
    _check_unchanged(path, held, table, dataset, rows)
    columns = {
        name: [*map(str, getattr(table, name)), *(getattr(dataset.table, name)[row] for row in new)]
        for name in ("sample_id", "split", "domain", "group")
    }
    targets = np.concatenate([np.asarray(table.target), np.asarray(dataset.table.target)[list(new)]])
    return RowTable(target=targets, **columns)


def _check_unchanged(path: Path, held: Header, table: RowTable, dataset: ImageDataset, rows: Sequence[int]) -> None:
    ids, now = [str(name) for name in table.sample_id], dataset.table
    before, after = np.asarray(table.target), np.asarray(now.target)[list(rows)]
    same = (before == after) | ((before != before) & (after != after))  # NaN is unlabelled, in both
    _first(path, "label", ids, ~same.reshape(len(ids), -1).all(1))
    for name in ("group", "domain"):
        _first(path, name, ids, _texts(getattr(table, name)) != _texts([getattr(now, name)[row] for row in rows]))
    moved = _texts(table.split) != _texts([now.split[row] for row in rows])
    if fingerprint_of_rows(dataset, sorted(rows)) != held.dataset["fingerprint"]:
        _first(path, "split", ids, moved if "given" in str(held.dataset.get("split_rule")) else np.zeros_like(moved))
        _refuse(path, "a file of a sample that the store holds has changed its size or content")
    if moved.any():
        log.warning("%d samples would change their split and keep that of the store", int(moved.sum()))


def _texts(values: Sequence[str]) -> npt.NDArray[Any]:
    return np.asarray(values, dtype=np.dtypes.StringDType())


def _first(path: Path, what: str, ids: Sequence[str], differs: npt.NDArray[np.bool_]) -> None:
    if differs.any():
        _refuse(path, f"{int(differs.sum())} samples have another {what}, the first is {ids[int(differs.argmax())]!r}")


def _refuse(path: Path, why: str) -> None:
    raise StoreMismatchError(
        f"{path} cannot take in the new samples of this data set: {why}. What a store holds of a sample is for ever; "
        "give another --out, or the data as it was."
    )
