"""Zarr v3 stores: one array per layer, uncompressed chunks that map like RAM, a ledger of what is real."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.datasets import RowTable
from featurecache.errors import StoreContentsError, StoreDamagedError, StoreError
from featurecache.features import ArraySpec, Header
from featurecache.stores import _copying, _ledger, _restoring, _verifying
from featurecache.stores._agreement import check_extends
from featurecache.stores._choosing import RowAccess
from featurecache.stores._constants import (
    CLASSES,
    ClassValues,
    Cut,
    Piece,
    assembled,
    checked_pieces,
    constant_called,
)  # fmt: skip
from featurecache.stores._copying import Copied, Journal, check_copy, copy_notes, header_from, replacing, take_apart
from featurecache.stores._creation import LEDGER, ROOT, checked, create_files, extend_files, settle, snapshot
from featurecache.stores._erasing import erase_rows
from featurecache.stores._explaining import explained, not_a_store, reading
from featurecache.stores._gaps import overlaps
from featurecache.stores._growing import check_grows, grow_files
from featurecache.stores._layout import TABLE_COLUMNS, column, column_piece
from featurecache.stores._locking import LOCK, Lock, acquire, share
from featurecache.stores._planning import in_chunks
from featurecache.stores._reading import StoredRows
from featurecache.stores._resplitting import SPLIT, check_resplit, read_split, replace_split
from featurecache.stores._second_copy import keep_copy
from featurecache.stores._shards import Shard, begin_share
from featurecache.stores._writer import Writer

if TYPE_CHECKING:
    import zarr

SUFFIXES = (".zarr",)
planned, examine, mend = in_chunks, _verifying.examine, _restoring.mend


def create(
    path: Path,
    header: Header,
    table: RowTable,
    *,
    chunk_multiple: int,
    constants: ClassValues | None = None,
    shard: Shard | None = None,
) -> ZarrStore:
    """Create a store without rows: it is there whole, or not at all."""
    create_files(path, header, table, chunk_multiple, constants)
    return open(path, writable=True, shard=shard)


def open(path: Path, *, writable: bool = False, shard: Shard | None = None, take_over: bool = False) -> ZarrStore:
    """Open an existing store."""
    if (path / LEDGER).exists():
        if not writable:
            return ZarrStore(path)
        return _writable(path, take_over) if shard is None else _shared(path, shard, take_over)
    raise not_a_store(path)


def _writable(path: Path, take_over: bool) -> ZarrStore:
    header_from(path, snapshot(path)[0])  # nothing is written into a store of another format version
    lock = acquire(path, take_over=take_over)  # first: the ledger may grow until the lock is ours
    try:
        return ZarrStore(path, lock)
    except BaseException:
        lock.release(for_good=False)
        raise


def _shared(path: Path, shard: Shard, take_over: bool) -> ZarrStore:
    """Open a store to write a share of its rows; for reading, where nothing of the share is missing."""

    def rows() -> range:
        store = ZarrStore(path)
        return shard.rows(store.header.rows, list(store.chunk_rows.values()))

    reader = ZarrStore(path)
    reader.share = rows()
    if not overlaps(reader.missing(), reader.share):
        return reader
    lock = share(path, rows, partial(settle, path), take_over=take_over)
    try:
        assert lock.rows is not None
        with explained(f"write to {path}"):
            begin_share(path, path / LEDGER, lock.rows)
        return ZarrStore(path, lock)
    except BaseException:
        lock.release(for_good=False)
        raise


def exists(path: Path) -> bool:
    """Return whether anything is where a store at `path` would be, or would begin."""
    return path.exists()


def copy(source: Copied, path: Path) -> None:
    """Write a finished store that is `source` in this format, verified against it; whole or not at all."""
    with replacing(path) as temporary:
        temporary.mkdir()
        take_apart(source, temporary)
        check_copy(ZarrStore(temporary), source)
        copy_notes(source.notes, temporary)


class ZarrStore(RowAccess):
    """A store in one folder. See `FeatureStore` for the contract."""

    def __init__(self, path: Path, lock: Lock | None = None) -> None:
        """Open for reading, or for writing with the store's lock, which stays the caller's if this raises."""
        self.path = self.notes = path
        self._table: RowTable | None = None
        self._writer: Writer | None = None
        if lock is not None and lock.rows is None:
            with explained(f"write to {path}"):
                settle(path)
        self._load(lock)

    def _load(self, lock: Lock | None = None) -> None:
        with reading(self.path):
            root, records, _ = snapshot(self.path, resplit=True)
        self._root_text = root
        self.header = header_from(self.path, root)  # first: another version may know other lines in its ledger
        self._state = _ledger.Committed.replay(records)
        self.__dict__.pop("_root", None)
        self._rows = StoredRows(self.path, self.header, self._state, self._array)
        self.share = range(self.header.rows) if lock is None or lock.rows is None else lock.rows
        if lock is not None:
            self._writer = Writer(self.path, lock, self.header, self._rows.chunk_rows, self._state)

    @cached_property
    def _root(self) -> zarr.Group:
        """The arrays as zarr reads them; who asks for header, ledger or kept scores alone waits for no zarr."""
        import zarr

        with reading(self.path):
            return zarr.open_group(str(self.path), mode="r", zarr_format=3)

    def _array(self, name: str) -> zarr.Array[Any]:
        found: Any = self._root[name]
        return found  # type: ignore[no-any-return]

    @property
    def chunk_rows(self) -> Mapping[str, int]:
        """Array -> rows of a chunk."""
        return self._rows.chunk_rows

    @property
    def read_only(self) -> bool:
        """Whether this one writes nothing."""
        return self._writer is None

    @property
    def finished(self) -> bool:
        """Whether the store is sealed (nothing missing, canonical ledger) and no other writer has to let go of it yet."""
        return self._state.finished and (self._writer is not None or not (self.path / LOCK).exists())

    @property
    def interrupted_at(self) -> int:
        """Row up to which an earlier, unfinished writer had begun to compute; 0 where there was none."""
        return self._writer.lock.interrupted_at if self._writer else 0

    @property
    def uncommitted(self) -> int:
        """Rows written since the last commit."""
        return self._writer.uncommitted if self._writer else 0

    def table(self) -> RowTable:
        """Return the row table; read once, then kept."""
        if self._table is None:
            known = slice(0, self.header.rows)  # it may have grown since
            with reading(self.path):
                columns: dict[str, Any] = {
                    name: column(self._array(name), known) for name in TABLE_COLUMNS if name != SPLIT
                }
                self._check_table(
                    name for name in self._state.files if name.partition("/")[0] in columns and Path(name).name != ROOT
                )
                columns[SPLIT] = self._split(range(self.header.rows))
            self._table = RowTable(**columns)
        return self._table

    def column(self, name: str, rows: slice) -> npt.NDArray[Any]:
        """Return some rows of a column of the row table, their files checked; not kept."""
        if self._table is not None:
            return np.asarray(getattr(self._table, name)[rows])
        first, last, _ = rows.indices(self.header.rows)
        if name == SPLIT:
            with reading(self.path):
                return self._split(range(first, max(first, last)))
        array = self._array(name)
        pieces = range(first // array.chunks[0], -(-last // array.chunks[0]))
        with reading(self.path):
            found = column(array, slice(first, last))
            self._check_table(
                file
                for file in self._state.files
                if file.startswith(f"{name}/c/") and int(file.split("/")[2]) in pieces
            )
        return found

    def _split(self, rows: range) -> npt.NDArray[Any]:
        return read_split(self.path, self._state.files, int(self._array(SPLIT).chunks[0]), rows)

    def _check_table(self, names: Iterable[str]) -> None:
        """Compare files of the row table, which zarr has just read, with their checksums: it takes what is gone for "".

        A store that has grown since it was opened keeps the rows that were there, in files of the new ledger.

        Raises:
            StoreDamagedError: a file is not what was written.
        """
        later: Mapping[str, int] = {}
        for name in names:
            crc = self._state.files[name]
            try:
                checked(self.path, name, crc)
            except StoreDamagedError:
                later = later or _ledger.Committed.replay(_ledger.read_records(self.path / LEDGER)[0]).files
                if later.get(name, crc) == crc:
                    raise
                checked(self.path, name, later[name])

    def status(self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None) -> npt.NDArray[Any]:
        """Return (N,) text: "ok", "skipped: reason", "deleted", or "" for rows that are not committed (None: in any)."""
        return self._status(range(self.header.rows), self.missing(arrays, views))

    def _status(self, rows: range, gaps: Sequence[range] = ()) -> npt.NDArray[Any]:
        status = np.full(len(rows), "ok", dtype=np.dtypes.StringDType())
        for row, reason in self._state.skipped.items():
            if row in rows:
                status[row - rows.start] = f"skipped: {reason}"
        for gap in overlaps(gaps, rows):
            status[gap.start - rows.start : gap.stop - rows.start] = ""
        status[[row - rows.start for row in sorted(self._state.deleted) if row in rows]] = "deleted"
        return status

    def readable(
        self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Return (N,) whether a row is committed and its image could be read."""
        readable = np.ones(self.header.rows, dtype=bool)
        readable[[*self._state.skipped, *self._state.deleted]] = False
        for gap in self.missing(arrays, views):
            readable[gap.start : gap.stop] = False
        return readable

    def missing(self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None) -> list[range]:
        """Return the rows not committed in every one of `arrays` and `views` (None: all), ascending and disjoint."""
        names = [spec.name for spec in self.header.arrays] if arrays is None else arrays
        return self._state.missing(names, range(self.header.views) if views is None else views, self.header.rows)

    def _writing(self) -> Writer:
        if self._writer is None:
            raise StoreError(f"{self.path} was opened for reading. Open it with writable=True.")
        return self._writer

    def _whole(self) -> Writer:
        writer = self._writing()
        if writer.lock.rows is not None:
            raise StoreError(f"{self.path} was opened for a share of its rows. Open it whole to extend or finish it.")
        return writer

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
        given = views or {}
        parts = {name: tuple(given.get(name, range(self.header.views))) for name in arrays}
        self._writing().write(rows, arrays, skipped, parts)

    def commit(self) -> None:
        """Make everything written so far durable, in all arrays at once."""
        self._writing().commit()

    def extend(self, header: Header, *, chunk_multiple: int, constants: ClassValues | None = None) -> None:
        """Take in what `header` holds more; durable at once, nothing else is touched."""
        check_extends(self.path, self.header, header)
        self._changed(lambda: extend_files(self.path, self._state, header, chunk_multiple, constants))

    def grow(self, header: Header, table: RowTable) -> None:
        """Take in rows behind those that are there; durable at once, nothing else is touched."""
        check_grows(self.header, header, self.table().sample_id, table)
        self._changed(lambda: grow_files(self.path, self._state, header, table))
        self._table = None

    def replace_split(self, header: Header, split: Sequence[str]) -> None:
        """Give every row a split anew; `header` says by which rule. Durable at once, nothing else is touched."""
        check_resplit(self.header, header, split)
        chunk = int(self._array(SPLIT).chunks[0])
        self._changed(lambda: replace_split(self.path, self._state, header, split, chunk))
        self._table = None

    def delete(self, rows: Collection[int]) -> None:
        """Take rows out for good: their bytes become zero and no reader yields them; durable at once."""
        erased = set(rows) - self._state.deleted
        if erased:
            self._changed(lambda: erase_rows(self.path, self._state, self.header, self.chunk_rows, erased))

    def committed(self) -> _ledger.Committed:
        """Return what the ledger tells."""
        return self._state

    def _changed(self, act: Callable[[], None]) -> None:
        """Let `act` change the files of the store as a whole, and read it again."""
        writer = self._whole()
        writer.commit()
        lock = writer.lock.moved_to(0)
        with explained(f"extend {self.path}"):
            act()
            keep_copy(self.path, self.path / LEDGER)
        writer.let_go()
        self._load(lock)

    def finish(self) -> None:
        """Seal the store; its files are from then on a function of its content alone."""
        gaps = self.missing()
        if gaps:
            raise StoreContentsError(f"{self.path} lacks {sum(map(len, gaps))} rows, so it cannot be finished.")
        self._whole().seal(self.header.rows, self._status_pieces())

    def _status_pieces(self) -> Iterator[tuple[str, bytes]]:
        """Yield path and content of the files of `status`, made one by one: the text of all rows would be long."""
        chunk, rows = int(self._array("status").chunks[0]), range(self.header.rows)
        for number, start in enumerate(range(0, len(rows), chunk)):
            yield column_piece("status", number, self._status(rows[start : start + chunk]), chunk)

    def read(self, array: str, rows: npt.NDArray[np.int64] | slice, view: int = 0) -> npt.NDArray[Any]:
        """Return the stored values of `rows`, (B, ...) in storage dtype, in the order asked."""
        return self._rows.read(array, rows, view)

    def mapped(self, array: str, view: int = 0) -> npt.NDArray[Any] | None:
        """Return all N rows as one array over the mapped chunk files, or None where chunks cannot be mapped in a row."""
        return self._rows.mapped(array, view)

    def constant(self, name: str) -> npt.NDArray[Any]:
        """Return an array of the classes, whole, in storage dtype."""
        spec = constant_called(self.path, self.header, name)
        with reading(self.path):
            return assembled(spec, self.class_pieces(spec))

    def class_pieces(self, spec: ArraySpec) -> Iterator[Piece]:
        """Yield what every file of an array of the classes holds, checked."""

        def content(name: str, classes: range) -> bytes:
            return (self.path / name).read_bytes() if (self.path / name).exists() else b""

        return checked_pieces(
            self.path, Cut(spec, int(self._array(spec.name).chunks[CLASSES])), self._state.files, content
        )

    def journal(self) -> Journal:
        """Return the ledger and Zarr's metadata, which every copy in another format keeps."""
        with reading(self.path):
            return _copying.read_journal(self.path, self._state.files, self._root_text)

    def block(self, spec: ArraySpec, rows: slice) -> npt.NDArray[Any]:
        """Return (B, V, ...) of the rows of one chunk, read from its files and not mapped."""
        return self._rows.block(spec, rows)

    def let_go(self) -> None:
        """Close the files, but leave the lock to whoever gave it."""
        self._rows.forget()
        self._writing().let_go()
        self._writer = None

    def close(self) -> None:
        """Release files and the writer's lock."""
        self._rows.forget()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
