"""The verb `merge`: one store of the rows of several, written apart or of other samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.checks import Config, check
from featurecache.datasets import RowTable
from featurecache.errors import StoreContentsError, StoreMismatchError
from featurecache.features import Header, comparable_data, differences
from featurecache.files import write_atomic
from featurecache.progress import Stopwatch
from featurecache.provenance import PROVENANCE
from featurecache.reports import Displayed, Table
from featurecache.stores import (
    FeatureStore,
    Taken,
    format_of,
    gaps_between,
    of_classes,
    open_store,
    store_exists,
    write_store,
)  # fmt: skip

COLUMNS = ("sample_id", "split", "domain", "group")
BLOCK = 4096
"""Rows that are compared at once."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Config):
    """Write one store of the rows of several: shares of one data set that were written apart, or disjoint sets of samples.

    They must hold features of one kind. The stores stay as they are.
    """

    stores: tuple[Path, ...]
    """Stores to merge, in the order of their rows where they hold different samples."""
    out: Path
    """Store to write; the suffix names the format (.zarr, .h5)."""

    def __post_init__(self) -> None:
        check(
            (len(self.stores) > 1, f"merge takes two stores or more, got {len(self.stores)}"),
            (self.out not in self.stores, f"out must be another path than the stores, got {self.out} twice"),
        )


@dataclass(frozen=True, kw_only=True)
class MergeReport(Displayed):
    """What a merge did."""

    out: Path
    rows: int
    of: tuple[tuple[str, int], ...]
    """Store -> rows taken from it."""
    left: int
    """Rows that none of the stores holds."""
    was_there: bool
    """Whether `out` held all of this before, so that nothing was written."""
    seconds: float

    def tables(self) -> list[Table]:
        """Return where the rows came from, and what is missing."""
        done = f"{self.out}: {self.rows} rows in {self.seconds:.1f} s"
        if self.was_there:
            done = f"{self.out} holds all of them already: nothing to do"
        missing = f"{self.left} rows are in none of them: the extract-features command of the stores, with this --out, goes on"
        return [Table("", ("store", "rows"), self.of, (done, *([missing] if self.left else [])))]

    def json(self) -> dict[str, Any]:
        """Return everything the table says."""
        return {
            "out": str(self.out),
            "rows": self.rows,
            "of": dict(self.of),
            "left": self.left,
            "was_there": self.was_there,
            "seconds": self.seconds,
        }


def run(config: MergeConfig) -> MergeReport:
    """Merge the stores, unless `out` is what they make already.

    Raises:
        StoreMismatchError: they hold features of different kinds, classes or samples twice; names what.
        StoreContentsError: stores of different samples of which one is not finished.
        StoreDamagedError: one does not hold what was committed.
        StoreError: something else is at `out`.
    """
    format_of(config.out)
    watch, stores = Stopwatch(), [open_store(path) for path in config.stores]
    first = stores[0]
    for path, store in zip(config.stores, stores, strict=True):
        _check_same_kind(config.stores[0], first.header, path, store)
    shares = all(comparable_data(store.header.dataset) == comparable_data(first.header.dataset) for store in stores)
    header, table, taken = _union(stores) if shares else _behind_each_other(config.stores, stores)

    def constants(classes: range) -> dict[str, Any]:
        return {spec.name: of_classes(spec, first.constant(spec.name), classes) for spec in header.constants}

    there = store_exists(config.out) and _is_made(open_store(config.out), header, table, taken)
    if not there:
        write_store(config.out, header, table, taken, constants)
    made = open_store(config.out)
    _take_notes(made.notes, [store.notes for store in stores])
    counts = [sum(len(piece.rows) for piece in taken if piece.store is store) for store in stores]
    of = tuple((str(path), count) for path, count in zip(config.stores, counts, strict=True))
    left = sum(map(len, made.missing()))
    return MergeReport(out=config.out, rows=header.rows, of=of, left=left, was_there=there, seconds=watch.elapsed)


def _is_made(store: FeatureStore, header: Header, table: RowTable, taken: Sequence[Taken]) -> bool:
    """Return whether a store is what this merge makes, row by row, as after a kill behind the last step."""
    status = np.full(header.rows, "", store.status().dtype)
    for piece in taken:
        status[piece.at : piece.at + len(piece.rows)] = piece.store.status()[piece.rows.start : piece.rows.stop]
    if (
        store.header != header
        or list(store.table().sample_id) != list(table.sample_id)
        or any(store.status() != status)
    ):
        return False
    for piece in taken:
        for start in range(0, len(piece.rows), BLOCK):
            stop = min(start + BLOCK, len(piece.rows))
            ours = slice(piece.at + start, piece.at + stop)
            theirs = slice(piece.rows.start + start, piece.rows.start + stop)
            for spec, view in product(header.arrays, range(header.views)):
                found, known = store.read(spec.name, ours, view), piece.store.read(spec.name, theirs, view)
                if found.tobytes() != known.tobytes():
                    return False
    return True


def _take_notes(notes: Path, sources: Sequence[Path]) -> None:
    """Keep the provenance of all sources, unless it is there already."""
    known = [source / PROVENANCE for source in sources if (source / PROVENANCE).exists()]
    if known and not (notes / PROVENANCE).exists():
        notes.mkdir(exist_ok=True)
        write_atomic(notes / PROVENANCE, b"".join(path.read_bytes() for path in known))


def _check_same_kind(first: Path, held: Header, path: Path, store: FeatureStore) -> None:
    ours, theirs = ({**header.to_json(), "dataset": {}, "rows": 0} for header in (held, store.header))
    found = differences(ours, theirs)
    if found:
        lines = "\n".join(f"  {name}: {a!r} and {b!r}" for name, a, b in found)
        raise StoreMismatchError(f"{first} and {path} hold features of different kinds, so they stay two:\n{lines}")


def _union(stores: Sequence[FeatureStore]) -> tuple[Header, RowTable, list[Taken]]:
    """Return the rows that any of the stores of one data set holds; of several that hold one, the first gives it."""
    header, table = stores[0].header, stores[0].table()
    for store in stores[1:]:
        if list(store.table().sample_id) != list(table.sample_id):
            raise StoreMismatchError(f"{store.path} holds the samples of {stores[0].path} in another order.")
    owner = np.full(header.rows, -1)
    for number, store in reversed(list(enumerate(stores))):
        owner[np.concatenate([np.arange(rows.start, rows.stop) for rows in gaps_between(store)])] = number
    _check_deleted(stores, owner, table)
    edges = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), header.rows]
    spans = [range(a, b) for a, b in pairwise(edges)]
    taken = [Taken(stores[owner[rows.start]], rows, rows.start) for rows in spans if owner[rows.start] >= 0]
    return header, table, taken


def _check_deleted(stores: Sequence[FeatureStore], owner: npt.NDArray[np.int64], table: RowTable) -> None:
    """Refuse rows that were deleted from one store, and would come back from another or from an extraction."""
    deleted = [store.status() == "deleted" for store in stores]
    for store, gone in zip(stores, deleted, strict=True):
        for row in np.flatnonzero(gone & (owner < 0)).tolist():
            raise StoreContentsError(
                f"{str(table.sample_id[row])!r} was deleted from {store.path}, and its row is in none of the stores, so "
                "an extraction could bring it back. Let the extract-features command of one of them end first."
            )
        for other, theirs in zip(stores, deleted, strict=True):
            back = gone & ~theirs & (owner == stores.index(other))
            if back.any():
                raise StoreContentsError(
                    f"{int(back.sum())} samples that were deleted from {store.path} are still in {other.path}, the first "
                    f"is {str(table.sample_id[int(back.argmax())])!r}. Delete them there too: featurecache delete {other.path} --ids ..."
                )


def _behind_each_other(paths: Sequence[Path], stores: Sequence[FeatureStore]) -> tuple[Header, RowTable, list[Taken]]:
    """Return the rows of finished stores of disjoint samples, one store after the other."""
    seen: dict[str, Path] = {}
    for path, store in zip(paths, stores, strict=True):
        if not store.finished:
            raise StoreContentsError(
                f"{path} is not finished, and the stores hold different samples. Finish it first: run its "
                "extract-features command again."
            )
        ids = [str(name) for name in store.table().sample_id]
        twice = [name for name in ids if name in seen]
        if twice:
            raise StoreMismatchError(
                f"{len(twice)} samples of {path} are in {seen[twice[0]]} too, the first is {twice[0]!r}. "
                "A sample has one row: merge stores of different samples."
            )
        seen |= dict.fromkeys(ids, path)
    tables = [store.table() for store in stores]
    columns = {name: [str(value) for table in tables for value in getattr(table, name)] for name in COLUMNS}
    table = RowTable(target=np.concatenate([np.asarray(table.target) for table in tables]), **columns)
    parts = [dict(store.header.dataset) for store in stores]
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
    dataset = {"name": "+".join(str(part.get("name")) for part in parts), "fingerprint": f"merged:{digest}",
               "rows": len(table), "split_rule": "of the parts", "parts": parts}  # fmt: skip
    starts = np.cumsum([0, *(store.header.rows for store in stores)]).tolist()
    taken = [Taken(store, range(store.header.rows), at) for store, at in zip(stores, starts, strict=False)]
    return replace(stores[0].header, rows=len(table), dataset=dataset), table, taken
