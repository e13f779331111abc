"""Features on disk: chunked, checksummed, real only when committed.

A file of this room is one format; it names its `SUFFIXES` and answers `create`, `open`, `exists`, `copy` and `planned`. The
contract has one form for start, resume, repair and extension: ask what is `missing`, `write` it, `commit`; rows are real only
from then on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from featurecache.declarations import read_constant
from featurecache.errors import ConfigError, StoreBusyError, StoreNotFoundError
from featurecache.features import ArraySpec, Header
from featurecache.path_kinds import STORES as STORE_SUFFIXES
from featurecache.path_kinds import explain_path, identify_path, suggest_path
from featurecache.places import Url, placed
from featurecache.registry import Registry
from featurecache.stores._agreement import lacking, united
from featurecache.stores._behind import WriteBehind
from featurecache.stores._constants import ClassValues, of_classes
from featurecache.stores._explaining import explained
from featurecache.stores._gaps import Gap, Taken, gaps, gaps_between, progress
from featurecache.stores._kept import Kept
from featurecache.stores._restoring import Material, Unlike
from featurecache.stores._shards import Shard
from featurecache.stores._verifying import WAYS, Damage, Examined, Seen

if TYPE_CHECKING:
    from featurecache.datasets import RowTable

__all__ = [
    "STORES", "WAYS", "ClassValues", "Damage", "Examined", "FeatureStore", "Gap", "Kept", "Material", "Shard", "Taken", "Unlike",
    "WriteBehind", "copy_store", "create_store", "digests", "examine_store", "explained", "finish_share", "format_of",
    "gaps", "gaps_between", "is_store", "lacking", "left_in", "mend_store", "of_classes", "open_store", "planned_bytes",
    "progress", "remove_store", "same_store", "store_exists", "united", "write_store",
]  # fmt: skip

STORES = Registry("store format", "featurecache.stores")


class FeatureStore(Protocol):
    """One backbone over one data set, as readers and writers of every format see it."""

    path: Path
    notes: Path
    """Folder of what is known beside the features: provenance and scores. It may not be there yet."""
    header: Header
    finished: bool
    """Whether the store is sealed, and its writer gone."""
    uncommitted: int
    """Rows written since the last commit."""
    read_only: bool
    """Whether this one writes nothing."""
    share: range
    """Rows that this writer is to write; all, where it does not share the store with others."""
    interrupted_at: int
    """Row up to which an earlier, unfinished writer had begun to compute; 0 where there was none."""

    def table(self) -> RowTable:
        """Return the row table; read once, then kept."""

    def column(self, name: str, rows: slice) -> npt.NDArray[Any]:
        """Return consecutive rows of one column of the row table, (B, ...), read for this call where it is not there."""

    def status(self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None) -> npt.NDArray[Any]:
        """Return (N,) text: "ok", "skipped: reason", "deleted", or "" for rows that are not committed.

        Not committed in any of `arrays` and `views`; None: all.
        """

    def readable(
        self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Return (N,) whether a row is committed and its image could be read: where `status` is "ok", without the text."""

    def extend(self, header: Header, *, chunk_multiple: int, constants: ClassValues | None = None) -> None:
        """Take in what `header` holds more: arrays and views, which are then missing in every row; classes at once.

        Durable at once and whole or not at all; what is there is neither rewritten nor moved. `constants` is asked for
        the values of the classes, a few at a time.

        Raises:
            StoreMismatchError: the header is not the store's own with more in it.
        """

    def grow(self, header: Header, table: RowTable) -> None:
        """Take in rows behind those that are there, which are then missing; `header` and `table` are of all of them.

        Durable at once and whole or not at all; the rows that are there are neither rewritten nor moved.

        Raises:
            StoreError: they are not the store's own with more rows.
        """

    def replace_split(self, header: Header, split: Sequence[str]) -> None:
        """Give every row a split anew; `header` differs in the identity of the data set alone, which says by which rule.

        Durable at once and whole or not at all; features and all other columns are not touched. `finish` seals again.

        Raises:
            StoreError: the header differs in more, or there are not as many splits as rows.
        """

    def delete(self, rows: Collection[int]) -> None:
        """Take rows out for good: their bytes become zero in every array and view, and their status "deleted".

        They are as good as committed, so that nobody computes them again. Whole or not at all; `finish` seals again.
        """

    def missing(self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None) -> list[range]:
        """Return the rows not committed in every one of `arrays` and `views` (None: all), ascending and disjoint."""

    def begin(self, rows: range) -> None:
        """Note that `rows` are being computed, so that a later writer can say what a crash cost."""

    def write(
        self,
        rows: range,
        arrays: Mapping[str, npt.NDArray[Any]],
        skipped: Mapping[int, str],
        views: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Take the values of consecutive rows, (B, V, ...) each in storage dtype; not real before `commit`.

        `views` names those that an array's values are of, where these are not all.
        """

    def commit(self) -> None:
        """Make everything written so far durable, in all arrays at once."""

    def finish(self) -> None:
        """Seal a store in which nothing is missing; its files are then a function of its content alone."""

    def read(self, array: str, rows: npt.NDArray[np.int64] | slice, view: int = 0) -> npt.NDArray[Any]:
        """Return the stored values of `rows`, (B, ...) in storage dtype, in the order asked.

        Raises:
            StoreContentsError: no such array, or rows of it that are not committed.
            StoreDamagedError: a chunk is gone or cut off.
        """

    def mapped(self, array: str, view: int = 0) -> npt.NDArray[Any] | None:
        """Return all N rows as one array over the mapped chunk files, or None where chunks cannot be mapped in a row."""

    def constant(self, name: str) -> npt.NDArray[Any]:
        """Return an array of the classes, whole, in storage dtype.

        Raises:
            StoreContentsError: no such array.
            StoreDamagedError: it is not what was written.
        """

    def row_numbers(
        self, *, split: str | None = None, array: str | None = None, view: int = 0
    ) -> npt.NDArray[np.int64]:
        """Return the numbers of the rows of a split (None: of all) that are committed and whose image could be read.

        The five below yield these rows, in this order.

        Raises:
            StoreContentsError: no such split or array; names those that there are.
        """

    def to_numpy(self, array: str, *, split: str | None = None, view: int = 0) -> npt.NDArray[Any]:
        """Return the values of an array, (N, ...), or an array of the classes, whole; bfloat16 as float32."""

    def labels(self, *, split: str | None = None, array: str | None = None, view: int = 0) -> npt.NDArray[Any]:
        """Return the targets, (N,) or (N, K); -1 or NaN: unlabelled."""

    def sample_ids(self, *, split: str | None = None, array: str | None = None, view: int = 0) -> list[str]:
        """Return the N sample ids."""

    def X_y(
        self, array: str, split: str | None = None, *, view: int = 0, labelled: bool | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return features and targets, as `fit` of scikit-learn takes them; refuse unlabelled rows unless told what to do."""

    def to_pandas(self, *, split: str | None = None) -> Any:
        """Return the row table with `status` as a data frame, one line for each row, also for those that were skipped."""

    def close(self) -> None:
        """Release files and the writer's lock."""


def open_store(
    path: str | Path | Url, *, writable: bool = False, shard: Shard | None = None, take_over: bool = False
) -> FeatureStore:
    """Open the store at `path`; the suffix names the format. A URL (`s3://bucket/x.zarr`) is opened for reading alone.

    With a `shard`, a writable store takes only the rows of its `share`, beside writers of others. `take_over` takes the
    place of a writer of another machine that was silent for long.

    Raises:
        StoreNotFoundError, StoreDamagedError, StoreError (a newer format), StoreBusyError (writable, and being written).
    """
    place = placed(path)
    if isinstance(place, Url):
        remote: FeatureStore = _private("_remote").open_remote(place, writable=writable)
        return remote
    if place.suffix not in _formats():
        _refuse_other_kind(place)
    opened: FeatureStore = format_of(place).open(place, writable=writable, shard=shard, take_over=take_over)
    return opened


def _refuse_other_kind(path: Path) -> None:
    """Refuse a path whose name is not that of a store, saying what lies there.

    Raises:
        StoreNotFoundError: something else lies there, or nothing, and a store has nearly its name.
    """
    if identify_path(path, pictures=False) == "store":
        raise StoreNotFoundError(
            f"{path} holds a feature store, but its name does not end in .zarr, which names the format. Rename it: "
            f"{path}.zarr"
        )
    if why := explain_path(path, "store"):
        raise StoreNotFoundError(f"{path} is not a feature store: {why}.")
    if not path.exists() and (near := suggest_path(path, STORE_SUFFIXES)):
        raise StoreNotFoundError(f"{path} does not exist.{near}")


def finish_share(path: Path, share: FeatureStore, *, take_over: bool = False) -> FeatureStore:
    """Let go of a share whose rows are committed, and return the store: sealed, if no share lacks anything any more.

    Of several that end at one moment, one seals the store. It is the caller's to close.
    """
    share.close()
    reader = open_store(path)
    if reader.finished or reader.missing():
        return reader
    try:
        whole = open_store(path, writable=True, take_over=take_over)
    except StoreBusyError:  # the one who is there seals it, or tries after us
        return reader
    try:
        if not whole.finished and not whole.missing():
            whole.finish()
    except BaseException:
        whole.close()
        raise
    return whole


def create_store(
    path: str | Path | Url,
    header: Header,
    table: RowTable,
    *,
    chunk_multiple: int,
    constants: ClassValues | None = None,
    shard: Shard | None = None,
) -> FeatureStore:
    """Create a store without rows, open for writing, or of a share; chunks hold a multiple of `chunk_multiple` rows.

    `constants` is asked for the values of the classes, a few at a time, where the header speaks of such arrays.

    Raises:
        StoreError: something is there already, or it is a place that is only read.
    """
    place = placed(path)
    if isinstance(place, Url):
        raise _private("_remote").not_written(place)
    create = format_of(place).create
    created: FeatureStore = create(
        place, header, table, chunk_multiple=chunk_multiple, constants=constants, shard=shard
    )
    return created


def store_exists(path: Path | Url) -> bool:
    """Return whether anything is at `path`, or where a store of its format begins."""
    path = placed(path)
    if isinstance(path, Url):
        return path.exists()
    return path.exists() or (path.suffix in _formats() and bool(format_of(path).exists(path)))


def copy_store(source: FeatureStore, path: Path) -> None:
    """Write a finished store again in the format that the suffix of `path` names, verified against it array by array.

    Raises:
        StoreError: something is at `path`, or it cannot be written.
        StoreDamagedError: the source does not hold what was committed.
    """
    format_of(path).copy(source, path)


def write_store(
    path: Path,
    header: Header,
    table: RowTable,
    taken: Sequence[Taken],
    constants: ClassValues,
    cast: Callable[[ArraySpec, range, npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
) -> None:
    """Write a store of rows of others, sealed where nothing is missing; whole or not at all.

    `taken` is ascending by place. `cast` turns values of rows of a source into those that the new store keeps.

    Raises:
        StoreError: something is at `path`, or it cannot be written.
        StoreDamagedError: a source does not hold what was committed.
    """
    format_of(path)
    from featurecache.stores import _merging  # it knows the formats, which know this door

    _merging.write_store(path, header, table, taken, constants, cast or _merging.as_they_are)


def same_store(one: Any, other: Any) -> bool:
    """Return whether two finished stores tell of the same content: equal headers, ledgers and checksums."""
    return bool(one.journal() == other.journal())


def examine_store(path: Path, seen: Seen = lambda count: None) -> Examined:
    """Compare every byte of a store that matters with its ledger; changes nothing. `seen` hears of the bytes read.

    Raises:
        StoreNotFoundError: there is no store, or no more.
    """
    examined: Examined = format_of(path).examine(path, seen)
    if not store_exists(path):
        raise StoreNotFoundError(f"{path} was removed while it was read, so nothing can be said of it.")
    return examined


def mend_store(
    path: Path, material: Material | Callable[[Kept], Sequence[Material]], *, accept: bool = False
) -> list[Unlike]:
    """Make a damaged store what it was, as far as that can be; return what came out otherwise, and was left as it is.

    What gives `material` may be told what the store still knows of its rows; of several, one after the other is tried.
    `accept` takes features that come out otherwise all the same, and records them so.

    Raises:
        StoreBusyError, StoreError: it is being written, or cannot be.
    """
    unlike: list[Unlike] = format_of(path).mend(path, material, accept=accept)
    return unlike


def is_store(path: Path) -> bool:
    """Return whether a store is at `path`, finished or not."""
    return bool(_private("_leftovers").is_store(path))


def left_in(path: Path) -> list[tuple[Path, str]]:
    """Return what a kill left inside a store and is no part of it, with what it is; `open_store` may use it no more."""
    return list(_private("_leftovers").left_in(path))


def remove_store(path: Path) -> None:
    """Remove a store in one folder, which is gone at once, whatever ends the removal."""
    _private("_leftovers").remove_store(path)


def planned_bytes(path: Path, header: Header, table: RowTable, *, chunk_multiple: int) -> dict[str, int]:
    """Return array -> bytes of its files, once a store with this header is finished at `path`; the rest in one entry."""
    planned: dict[str, int] = format_of(path).planned(header, table, chunk_multiple)
    return planned


def digests(store: Any) -> dict[str, str]:
    """Return array -> what changes whenever its committed rows, or what is known of the rows, would; in the store's order."""
    journal = store.journal()
    return {spec.name: journal.digest(spec.name) for spec in store.header.arrays}


def format_of(path: Path) -> Any:
    """Return the module of the format that the suffix of `path` names.

    Raises:
        ConfigError: no format has that suffix; names those that exist.
    """
    formats = _formats()
    if path.suffix not in formats:
        raise ConfigError(
            [f"{path} must end in one of {', '.join(sorted(formats))}: the suffix names the store's format"]
        )
    return STORES.load(formats[path.suffix])


def _private(name: str) -> Any:
    """Return a module of this room that knows the formats, which know this door."""
    return importlib.import_module(f"featurecache.stores.{name}")


def _formats() -> dict[str, str]:
    """Return suffix -> name of the format; none of them is imported."""
    return {s: name for name in STORES.names() for s in read_constant(f"{STORES.package}.{name}", "SUFFIXES")}
