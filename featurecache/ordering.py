"""The order of the rows of a store whose row table is damaged: from the data set, and from what was noted when it grew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.datasets import ImageDataset, RowTable
from featurecache.growing import COLUMNS, NOWHERE

Column = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Growth:
    """One time that a store took in new samples."""

    held: int
    """Rows before it."""
    new: Sequence[Sequence[int]]
    """Places of the new samples in the data set of then, as [first, behind the last]."""


def growths(lines: Sequence[Mapping[str, Any]], rows: int) -> list[Growth]:
    """Return from the lines of a provenance how a store came to have `rows` rows, the oldest growth first."""
    found: list[Growth] = []
    noted = [line["grown"] for line in lines if "grown" in line]
    while line := next((line for line in reversed(noted) if line["rows"] == rows), None):
        found.insert(0, Growth(line["held"], line["new"]))
        rows = line["held"]
    return found


def rebuilt(
    dataset: ImageDataset, columns: Mapping[str, Column], sound: Mapping[str, npt.NDArray[np.bool_]],
    grown: Sequence[Growth],
) -> RowTable:  # fmt: skip
    """Return the row table of a store: every value that is still sound, and what the data set says of the others.

    `sound` tells of each column, (N,), which values are. Whether it is what was written is for a checksum to say.
    """
    ids = _ids(dataset, columns["sample_id"], sound["sample_id"], grown)
    place = {name: row for row, name in enumerate(dataset.table.sample_id)}
    rows = np.array([place.get(name, NOWHERE) for name in ids], np.int64)
    told: dict[str, Any] = {"sample_id": ids}
    for name in COLUMNS[1:]:
        theirs = getattr(dataset.table, name)
        told[name] = [
            str(value) if good or row == NOWHERE else str(theirs[row])
            for value, good, row in zip(columns[name], sound[name], rows, strict=True)
        ]
    target = np.array(columns["target"])
    damaged = ~sound["target"] & (rows != NOWHERE)
    target[damaged] = np.asarray(dataset.table.target)[rows[damaged]]
    return RowTable(target=target, **told)


def _ids(dataset: ImageDataset, ids: Column, sound: npt.NDArray[np.bool_], grown: Sequence[Growth]) -> list[str]:
    if sound.all():
        return [str(name) for name in ids]
    noted = _in_order(list(dataset.table.sample_id), grown)
    if len(noted) == len(ids) and all(mine == str(name) for mine, name in zip(noted, ids, strict=True) if name):
        return noted
    known = {str(name) for name, good in zip(ids, sound, strict=True) if good}
    others = iter([name for name in dataset.table.sample_id if name not in known])
    return [str(name) if good else next(others, "") for name, good in zip(ids, sound, strict=True)]


def _in_order(ids: list[str], grown: Sequence[Growth]) -> list[str]:
    """Return the samples of a data set in the order in which they came into a store."""
    behind: list[str] = []
    for growth in reversed(grown):
        new = {row for first, stop in growth.new for row in range(first, stop)}
        behind = [name for row, name in enumerate(ids) if row in new] + behind
        ids = [name for row, name in enumerate(ids) if row not in new]
    return ids + behind
