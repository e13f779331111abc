"""HDF5 stores: one file when finished, assembled from the same journalled Zarr side that extraction writes beside it.

While `x.h5` is written or extended, the folder `x.h5.zarr` is the store: a Zarr store like any other, with its ledger and its
lock. `finish` assembles the file from it under a temporary name, renames it, and only then clears the side. A side without
a ledger is nothing but a lock, or what a kill left of one: the file is the store. Provenance and scores are in `x.h5.notes`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.datasets import RowTable
from featurecache.errors import StoreDamagedError, StoreError, StoreNotFoundError
from featurecache.features import ArraySpec, Header
from featurecache.stores import _hdf5_verifying
from featurecache.stores._agreement import check_extends
from featurecache.stores._choosing import RowAccess
from featurecache.stores._constants import ClassValues, Piece
from featurecache.stores._copying import Copied, Journal, copy_notes, replacing, take_apart
from featurecache.stores._creation import LEDGER, create_files
from featurecache.stores._explaining import explained, not_a_store
from featurecache.stores._growing import check_grows
from featurecache.stores._hdf5_file import Hdf5File, assemble, notes_of
from featurecache.stores._ledger import Committed
from featurecache.stores._locking import Lock
from featurecache.stores._planning import in_one_piece
from featurecache.stores._resplitting import check_resplit
from featurecache.stores._shards import Shard
from featurecache.stores._side import clear, locked, refuse_remains, remove_empty, side_of
from featurecache.stores.zarr import ZarrStore
from featurecache.stores.zarr import open as open_side

SUFFIXES = (".h5", ".hdf5")
planned, examine, mend = in_one_piece, _hdf5_verifying.examine, _hdf5_verifying.mend


def exists(path: Path) -> bool:
    """Return whether anything is where a store at `path` would be, or would begin."""
    return path.exists() or side_of(path).exists()


def create(
    path: Path,
    header: Header,
    table: RowTable,
    *,
    chunk_multiple: int,
    constants: ClassValues | None = None,
    shard: Shard | None = None,
) -> Hdf5Store | ZarrStore:
    """Create a store without rows: its Zarr side is there whole, or not at all."""
    refuse_remains(path)
    create_files(side_of(path), header, table, chunk_multiple, constants)
    return open(path, writable=True, shard=shard)


def open(
    path: Path, *, writable: bool = False, shard: Shard | None = None, take_over: bool = False
) -> Hdf5Store | ZarrStore:
    """Open an existing store, finished or not; for a share of its rows, the Zarr side itself."""
    if not path.exists() and not (side_of(path) / LEDGER).exists():
        raise not_a_store(path)
    if writable and shard is not None:
        return _shared(path, shard, take_over)
    return Hdf5Store(path, locked(side_of(path), take_over=take_over) if writable else None)


def _shared(path: Path, shard: Shard, take_over: bool) -> Hdf5Store | ZarrStore:
    try:
        side = open_side(side_of(path), writable=True, shard=shard, take_over=take_over)
    except (StoreNotFoundError, StoreDamagedError, OSError):
        if (side_of(path) / LEDGER).exists():
            raise
        return Hdf5Store(path)  # it is finished, perhaps since a moment
    side.notes = notes_of(path)
    return side


def copy(source: Copied, path: Path) -> None:
    """Write a finished store that is `source` in this format, verified against it; whole or not at all."""
    refuse_remains(path, source.notes)
    with replacing(path) as temporary:
        assemble(source, temporary)
        if not notes_of(path).exists():
            with replacing(notes_of(path)) as notes:
                notes.mkdir()
                copy_notes(source.notes, notes)


class Hdf5Store(RowAccess):
    """A store in one file, or on its way into one. See `FeatureStore` for the contract."""

    def __init__(self, path: Path, lock: Lock | None = None) -> None:
        self.path, self.notes = path, notes_of(path)
        self._side_path, self._lock = side_of(path), lock
        try:
            self._load()
        except BaseException:
            if lock is not None:
                lock.release(for_good=False)
            raise

    def _load(self) -> None:
        self._held: ZarrStore | Hdf5File
        if not (self._side_path / LEDGER).exists():
            self._held = self._file()
            return
        try:
            self._held = ZarrStore(self._side_path, self._lock)
        except (StoreDamagedError, OSError):
            if (self._side_path / LEDGER).exists():
                raise
            self._held = self._file()  # its writer finished between our two steps
            return
        if self._lock is not None and self._held.finished and self.path.exists():
            self._settle(self._held)

    def _file(self) -> Hdf5File:
        """Open the file; a writer first clears what a kill has left beside it."""
        if self._lock is not None:
            clear(self._side_path)
        return Hdf5File(self.path)

    def _settle(self, side: ZarrStore) -> None:
        """Clear a side that has become the file already, as the writer would have done that was killed then.

        What tells of the same rows may also be a damaged file, whose repair was killed before it took the file's place.
        """
        if not _hdf5_verifying.is_whole(self.path):
            return
        file = Hdf5File(self.path)
        if file.journal() == side.journal():
            side.let_go()
            clear(self._side_path)
            self._held = file
        else:
            file.close()

    @property
    def header(self) -> Header:  # type: ignore[override]
        """What the store holds, and what made it."""
        return self._held.header

    @property
    def finished(self) -> bool:
        """Whether the file is there and complete, and no other writer has to let go of it yet."""
        return isinstance(self._held, Hdf5File) and (self._lock is not None or not self._side_path.exists())

    @property
    def interrupted_at(self) -> int:
        """Row up to which an earlier, unfinished writer had begun to compute; 0 where there was none."""
        return self._held.interrupted_at if isinstance(self._held, ZarrStore) else 0

    @property
    def uncommitted(self) -> int:
        """Rows written since the last commit."""
        return self._held.uncommitted if isinstance(self._held, ZarrStore) else 0

    @property
    def read_only(self) -> bool:
        """Whether this one writes nothing."""
        return self._lock is None

    @property
    def share(self) -> range:
        """Rows that this writer is to write: all."""
        return range(self.header.rows)

    def table(self) -> RowTable:
        """Return the row table; read once, then kept."""
        return self._held.table()

    def column(self, name: str, rows: slice) -> npt.NDArray[Any]:
        """Return some rows of a column of the row table, which is not kept."""
        return self._held.column(name, rows)

    def status(self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None) -> npt.NDArray[Any]:
        """Return (N,) text: "ok", "skipped: reason", "deleted", or "" for rows that are not committed (None: in any)."""
        return self._held.status(arrays, views) if isinstance(self._held, ZarrStore) else self._held.status()

    def readable(
        self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Return (N,) whether a row is committed and its image could be read."""
        return self._held.readable(arrays, views)

    def missing(self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None) -> list[range]:
        """Return the rows not committed in every one of `arrays` and `views` (None: all), ascending and disjoint."""
        return self._held.missing(arrays, views) if isinstance(self._held, ZarrStore) else []

    def _writing(self) -> ZarrStore:
        if self._lock is None:
            raise StoreError(f"{self.path} was opened for reading. Open it with writable=True.")
        if isinstance(self._held, Hdf5File):
            raise StoreError(f"{self.path} is finished: rows are written to it only after it was extended.")
        return self._held

    def begin(self, rows: range) -> None:
        """Note that `rows` are being computed."""
        self._writing().begin(rows)

    def write(
        self,
        rows: range,
        arrays: Mapping[str, npt.NDArray[Any]],
        skipped: Mapping[int, str],
        views: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Take the values of consecutive rows, (B, V, ...) each in storage dtype; not real before `commit`."""
        self._writing().write(rows, arrays, skipped, views)

    def commit(self) -> None:
        """Make everything written so far durable, in all arrays at once."""
        if isinstance(self._held, ZarrStore):
            self._writing().commit()

    def extend(self, header: Header, *, chunk_multiple: int, constants: ClassValues | None = None) -> None:
        """Take in what `header` holds more; the file stays as it is until all of it is complete."""
        check_extends(self.path, self.header, header)
        self._taken_apart().extend(header, chunk_multiple=chunk_multiple, constants=constants)

    def grow(self, header: Header, table: RowTable) -> None:
        """Take in rows behind those that are there; the file stays as it is until all of it is complete."""
        check_grows(self.header, header, self.table().sample_id, table)
        self._taken_apart().grow(header, table)

    def replace_split(self, header: Header, split: Sequence[str]) -> None:
        """Give every row a split anew; the file stays as it is until it is finished again."""
        check_resplit(self.header, header, split)
        self._taken_apart().replace_split(header, split)

    def delete(self, rows: Collection[int]) -> None:
        """Take rows out for good; the file stays as it is until it is finished again."""
        if set(rows) - self.committed().deleted:
            self._taken_apart().delete(rows)

    def committed(self) -> Committed:
        """Return what the ledger tells."""
        return self._held.committed() if isinstance(self._held, ZarrStore) else self._held.journal().state()

    @property
    def chunk_rows(self) -> Mapping[str, int]:
        """Array -> rows that a checksum of the ledger covers."""
        if isinstance(self._held, ZarrStore):
            return self._held.chunk_rows
        return {spec.name: self._held.journal().chunk(spec.name)[0] for spec in self.header.arrays}

    def _taken_apart(self) -> ZarrStore:
        """Return the side, which is the store again until it is finished."""
        if isinstance(self._held, Hdf5File) and self._lock is not None:
            with explained(f"extend {self.path}"):
                take_apart(self._held, self._side_path)
            self._held.close()
            self._held = ZarrStore(self._side_path, self._lock)
        return self._writing()

    def finish(self) -> None:
        """Seal the store: assemble the file, give it its name, then clear the side."""
        if self.finished:
            return
        side = self._writing()
        side.finish()
        with replacing(self.path) as temporary:
            assemble(side, temporary)
        file = Hdf5File(self.path)
        side.let_go()
        self._held = file
        with explained(f"clear {self._side_path}"):
            clear(self._side_path)

    def read(self, array: str, rows: npt.NDArray[np.int64] | slice, view: int = 0) -> npt.NDArray[Any]:
        """Return the stored values of `rows`, (B, ...) in storage dtype, in the order asked."""
        return self._held.read(array, rows, view)

    def mapped(self, array: str, view: int = 0) -> npt.NDArray[Any] | None:
        """Return all N rows as one array over the mapped file, or None where it cannot be mapped."""
        return self._held.mapped(array, view)

    def constant(self, name: str) -> npt.NDArray[Any]:
        """Return an array of the classes, whole, in storage dtype."""
        return self._held.constant(name)

    def class_pieces(self, spec: ArraySpec) -> Iterator[Piece]:
        """Yield the classes of an array of the classes in the pieces of its Zarr files, checked."""
        return self._held.class_pieces(spec)

    def journal(self) -> Journal:
        """Return the ledger and Zarr's metadata, which every copy in another format keeps."""
        return self._held.journal()

    def block(self, spec: ArraySpec, rows: slice) -> npt.NDArray[Any]:
        """Return (B, V, ...) of the rows of one chunk, read from the file and not mapped."""
        return self._held.block(spec, rows)

    def close(self) -> None:
        """Release files and the writer's lock."""
        done = isinstance(self._held, Hdf5File)
        if isinstance(self._held, ZarrStore) and self._lock is not None:
            self._held.let_go()
        else:
            self._held.close()
        if self._lock is not None:
            self._lock.release(for_good=done)
            self._lock = None
            if done:
                remove_empty(self._side_path)
