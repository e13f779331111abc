"""A data set and a store of it that no longer hold the same samples: new ones have come, or deleted ones have gone.

Row i of a store is the same sample for ever. So new samples come behind the old ones, in the order of the data set; a sample
that was deleted keeps its row, and its picture may be gone, may be there, or may come back: it is never read again.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from featurecache.datasets import ImageDataset, RowTable, as_divided_before, fingerprint_of_rows
from featurecache.errors import StoreMismatchError
from featurecache.features import Header, comparable_data

log = logging.getLogger("featurecache")

COLUMNS = ("sample_id", "split", "domain", "group")
NOWHERE = -1
"""Place in a data set of a row that is not to be read."""


@dataclass(frozen=True, slots=True)
class Picked:
    """Reads the samples of a data set in another order; worker processes can be sent it."""

    read: Callable[[int], Any]
    rows: npt.NDArray[np.int64]
    instead: Any = None
    """What is given for rows that are nowhere."""

    def __call__(self, row: int) -> Any:
        """Return what lies at the place `row` of those that were picked."""
        place = int(self.rows[row])
        return self.instead if place == NOWHERE else self.read(place)


def arranged(dataset: ImageDataset, table: RowTable, deleted: Collection[int] = ()) -> ImageDataset:
    """Return the data set with the rows of a store's table, which names its samples in its own order and splits.

    Rows that were `deleted` from the store are not read, whether their pictures are there or not: they are black.
    """
    if not deleted and list(table.sample_id) == list(dataset.table.sample_id):
        return dataset
    place = {name: row for row, name in enumerate(dataset.table.sample_id)}
    rows = np.array([place.get(str(name), NOWHERE) for name in table.sample_id], np.int64)
    rows[list(deleted)] = NOWHERE
    return dataclasses.replace(
        dataset, table=table, read=Picked(dataset.read, rows, Image.new("RGB", (64, 64))),
        content=Picked(dataset.content, rows),
        measures=[dataset.measures[row] if row != NOWHERE else "" for row in rows] if dataset.measures else (),
    )  # fmt: skip


def divided_like(held: Header, dataset: ImageDataset, path: Path) -> ImageDataset:
    """Return a data set with the splits of an older version where the store at `path` was made by it: a store keeps its splits."""
    found = as_divided_before(dataset, str(held.dataset.get("split_rule")))
    if found is not dataset:
        log.info(
            "%s was made when val without test stayed val: its splits stay so, and nothing in it is the test. Extract into "
            "another --out, or divide its rows anew with featurecache split",
            path,
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a data set stands to a store that is of it."""

    new: Sequence[int] = ()
    """Rows of the data set that the store does not hold."""
    gone: int = 0
    """Samples that were deleted from the store, and are in the data set no more."""
    measured: bool = True
    """Whether sizes or contents of all that is left were compared; ids and labels always are."""


class _Apart(Exception):
    """Why a data set is not that of a store any more, and what may be done besides."""

    def __init__(self, why: str, way: str = "") -> None:
        super().__init__(why)
        self.why, self.way = why, way


def standing(
    path: Path, held: Header, table: RowTable, deleted: Collection[int], dataset: ImageDataset, *,
    way: str = "give another --out, or the data as it was",
) -> Standing | None:  # fmt: skip
    """Return how a data set stands to the store at `path`; None where it is another one, or its files are others.

    The same one has the rule of the split that the store knows, every sample that was not deleted, as it was, and perhaps
    more; its folder may have another name by now.

    Raises:
        StoreMismatchError: it is the same one, but a sample of the store is gone, or is not what it was; names the first.
    """
    try:
        return _standing(held, table, deleted, dataset)
    except _Apart as apart:
        raise StoreMismatchError(
            f"{path} is not of this data set any more: {apart.why}. What a store holds of a sample is for ever; "
            f"{way}{apart.way}."
        ) from None


def _standing(held: Header, table: RowTable, deleted: Collection[int], dataset: ImageDataset) -> Standing | None:
    place = {name: row for row, name in enumerate(dataset.table.sample_id)}
    known = {str(name) for name in table.sample_id}
    if _kind(dataset.identity) != _kind(held.dataset) or known.isdisjoint(place):
        return None
    new = [row for name, row in place.items() if name not in known]
    gone = [row for row, name in enumerate(table.sample_id) if str(name) not in place]
    if comparable_data(held.dataset) == comparable_data(dataset.identity):
        return Standing(gone=len(gone))
    if not new and not gone and not deleted:
        _check_classes_read_alike(held, dataset)
        return None
    lost = sorted(set(gone) - set(deleted))
    if lost:
        first = str(table.sample_id[lost[0]])
        raise _Apart(
            f"{len(lost)} samples of the store are gone from the data, the first is {first!r}",
            "; samples that shall go are taken out with featurecache delete",
        )
    dataset = renumbered(held, dataset)
    if dataset.class_names != held.class_names:
        name = next(iter(sorted(set(dataset.class_names) - set(held.class_names)) or dataset.class_names))
        raise _Apart(f"its classes are others (such as {name!r}), and the numbers of the classes would change")
    there = sorted(set(range(len(table))) - set(gone))
    _check_columns(held, table, dataset, there)
    measured = _measured(held, table, dataset, there, deleted)
    return Standing(new=new, gone=len(gone), measured=measured)


def _check_classes_read_alike(held: Header, dataset: ImageDataset) -> None:
    """Refuse the samples of the store where their folders are read as other classes than they were."""
    if dataset.task != "classification" or dataset.class_names == held.class_names:
        return
    ours, theirs = (
        ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") for names in (dataset.class_names, held.class_names)
    )
    raise _Apart(
        f"its samples are the same, but their classes were {theirs or 'none'}, and are {ours or 'none'} now",
        ". Folders of domains and names of splits are classes where DATA?domains=none or DATA?splits=none says so",
    )


def _kind(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a data set keeps while samples come and go."""
    kept = {name: value for name, value in comparable_data(identity).items() if name != "rows"}
    return {**kept, "fingerprint": str(identity.get("fingerprint")).rpartition(":")[0]}


def runs_of(rows: Sequence[int]) -> list[list[int]]:
    """Return ascending rows as [first, behind the last] of those that follow each other."""
    edges = np.flatnonzero(np.diff(rows) != 1) + 1
    return [[int(part[0]), int(part[-1]) + 1] for part in np.split(np.asarray(rows), edges) if len(part)]


def renumbered(held: Header, dataset: ImageDataset) -> ImageDataset:
    """Return a data set from which whole classes have gone with the numbers of classes that the store has; else itself."""
    left = tuple(name for name in held.class_names if name in set(dataset.class_names))
    if dataset.task != "classification" or dataset.class_names in (held.class_names, ()) or left != dataset.class_names:
        return dataset
    numbers = np.array([*(held.class_names.index(name) for name in left), NOWHERE], np.int64)
    target = numbers[np.asarray(dataset.table.target)]  # unlabelled rows, -1, take the last
    return dataclasses.replace(
        dataset, class_names=held.class_names, table=dataclasses.replace(dataset.table, target=target)
    )


def grown_table(held: Header, table: RowTable, dataset: ImageDataset, new: Sequence[int]) -> RowTable:
    """Return the table of a store after it has taken in the new rows of a data set; old rows keep what is known of them."""
    dataset = renumbered(held, dataset)
    columns = {
        name: [*map(str, getattr(table, name)), *(getattr(dataset.table, name)[row] for row in new)] for name in COLUMNS
    }
    targets = np.concatenate([np.asarray(table.target), np.asarray(dataset.table.target)[list(new)]])
    return RowTable(target=targets, **columns)


def _check_columns(held: Header, table: RowTable, dataset: ImageDataset, there: Sequence[int]) -> None:
    """Refuse rows of the store of which the data set says something else."""
    ids, now = [str(table.sample_id[row]) for row in there], dataset.table
    place = {name: row for row, name in enumerate(now.sample_id)}
    rows = [place[name] for name in ids]
    before, after = np.asarray(table.target)[list(there)], np.asarray(now.target)[rows]
    same = (before == after) | ((before != before) & (after != after))  # NaN is unlabelled, in both
    _first("label", ids, ~same.reshape(len(ids), -1).all(1))
    apart = {
        name: _texts([getattr(table, name)[row] for row in there]) != _texts([getattr(now, name)[row] for row in rows])
        for name in ("group", "domain", "split")
    }
    _first("group", ids, apart["group"])
    _first("domain", ids, apart["domain"])
    if "given" in str(held.dataset.get("split_rule")):
        _first("split", ids, apart["split"])
    elif apart["split"].any():
        log.warning("%d samples would change their split and keep that of the store", int(apart["split"].sum()))


def _measured(
    held: Header, table: RowTable, dataset: ImageDataset, there: Sequence[int], deleted: Collection[int]
) -> bool:
    """Return whether the files of the samples that are there have been compared by what the store knows of them.

    Its digest is of all its samples, or of those that were left when it last grew. Where samples are gone since, it says
    nothing of the others.
    """
    place = {name: row for row, name in enumerate(dataset.table.sample_id)}
    without = [row for row in there if row not in set(deleted)]
    for rows in (there, without):
        found = fingerprint_of_rows(dataset, sorted(place[str(table.sample_id[row])] for row in rows))
        if found == held.dataset["fingerprint"]:
            return True
    if len(there) == len(table):
        more = " (if it is one that was deleted, remove its file from the data)" if deleted else ""
        raise _Apart(f"a file of a sample that the store holds has changed its size or content{more}")
    log.warning("files of deleted samples are gone from the data: the others are compared by id and label alone")
    return False


def _texts(values: Sequence[str]) -> npt.NDArray[Any]:
    return np.asarray(values, dtype=np.dtypes.StringDType())


def _first(what: str, ids: Sequence[str], differs: npt.NDArray[np.bool_]) -> None:
    if differs.any():
        raise _Apart(f"{int(differs.sum())} samples have another {what}, the first is {ids[int(differs.argmax())]!r}")
