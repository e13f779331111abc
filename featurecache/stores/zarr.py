"""Zarr v3 stores: one array per layer, uncompressed chunks that map like RAM, a ledger of what is real."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from featurecache.datasets import RowTable
from featurecache.errors import StoreContentsError, StoreDamagedError, StoreError, StoreNotFoundError
from featurecache.features import FORMAT_VERSION, ArraySpec, Header
from featurecache.stores import _ledger
from featurecache.stores._agreement import check_extends
from featurecache.stores._chunks import chunk_key
from featurecache.stores._creation import LEDGER, create_files, extend_files, settle, snapshot
from featurecache.stores._explaining import explained
from featurecache.stores._layout import status_files
from featurecache.stores._mapping import can_map, map_files
from featurecache.stores._writer import LOCK, Lock, Writer, acquire

SUFFIXES = (".zarr",)


def create(path: Path, header: Header, table: RowTable, *, chunk_multiple: int) -> ZarrStore:
    """Create an empty store: it is there whole, or not at all."""
    create_files(path, header, table, chunk_multiple)
    return ZarrStore(path, writable=True)


def open(path: Path, *, writable: bool = False) -> ZarrStore:
    """Open an existing store."""
    if (path / LEDGER).exists():
        return ZarrStore(path, writable=writable)
    if path.exists():
        raise StoreNotFoundError(
            f"{path} is there, but it is not a feature store: it has no ledger. Give another path."
        )
    raise StoreNotFoundError(
        f"{path} does not exist. Make one with: featurecache extract-features DATA --backbone NAME --out {path}"
    )


class ZarrStore:
    """A store in one folder. See `FeatureStore` for the contract."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self._table: RowTable | None = None
        self._writer: Writer | None = None
        if not writable:
            self._load()
            return
        lock = acquire(path / LOCK)  # first: the ledger may grow until the lock is ours
        try:
            with explained(f"write to {path}"):
                settle(path)
            self._load(lock)
        except BaseException:
            lock.release(for_good=False)
            raise

    def _load(self, lock: Lock | None = None) -> None:
        root, records, _ = snapshot(self.path)
        self._state = _ledger.Committed.replay(records)
        self.header = _header(self.path, json.loads(root)["attributes"])
        self._root = zarr.open_group(str(self.path), mode="r", zarr_format=3)
        self.chunk_rows = {spec.name: int(self._array(spec.name).chunks[0]) for spec in self.header.arrays}
        self._maps: dict[tuple[str, int], npt.NDArray[Any]] = {}
        if lock is not None:
            self._writer = Writer(self.path, lock, self.header, self.chunk_rows, self._state)

    def _array(self, name: str) -> zarr.Array[Any]:
        found = self._root[name]
        assert isinstance(found, zarr.Array)
        return found

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
            columns: dict[str, Any] = {
                name: self._array(name)[:] for name in ("sample_id", "target", "split", "domain", "group")
            }
            self._table = RowTable(**columns)
        return self._table

    def status(self) -> npt.NDArray[Any]:
        """Return (N,) text: "ok", "skipped: reason", or "" for rows that are not committed."""
        status = np.full(self.header.rows, "ok", dtype=np.dtypes.StringDType())
        for row, reason in self._state.skipped.items():
            status[row] = f"skipped: {reason}"
        for gap in self.missing():
            status[gap.start : gap.stop] = ""
        return status

    def missing(self, arrays: Sequence[str] | None = None) -> list[range]:
        """Return the rows that are not committed in every one of `arrays` (None: all), ascending and disjoint."""
        names = [spec.name for spec in self.header.arrays] if arrays is None else arrays
        return self._state.missing(names, self.header.rows)

    def _writing(self) -> Writer:
        if self._writer is None:
            raise StoreError(f"{self.path} was opened for reading. Open it with writable=True.")
        return self._writer

    def begin(self, rows: range) -> None:
        """Note that `rows` are being computed."""
        self._writing().begin(rows)

    def write(self, rows: range, arrays: Mapping[str, npt.NDArray[Any]], skipped: Mapping[int, str]) -> None:
        """Take the values of consecutive rows, (B, V, ...) each in storage dtype; not real before `commit`."""
        self._writing().write(rows, arrays, skipped)

    def commit(self) -> None:
        """Make everything written so far durable, in all arrays at once."""
        self._writing().commit()

    def extend(self, header: Header, *, chunk_multiple: int) -> None:
        """Take in the arrays of `header` that are not there yet; durable at once, nothing else is touched."""
        check_extends(self.path, self.header, header)
        writer = self._writing()
        writer.commit()
        lock = writer.lock.moved_to(0)
        with explained(f"extend {self.path}"):
            extend_files(self.path, self._state, header, chunk_multiple)
        writer.let_go()
        self._load(lock)

    def finish(self) -> None:
        """Seal the store; its files are from then on a function of its content alone."""
        gaps = self.missing()
        if gaps:
            raise StoreContentsError(f"{self.path} lacks {sum(map(len, gaps))} rows, so it cannot be finished.")
        self._writing().seal(self.header.rows, status_files(list(self.status())))

    def read(self, array: str, rows: npt.NDArray[np.int64] | slice, view: int = 0) -> npt.NDArray[Any]:
        """Return the stored values of `rows`, (B, ...) in storage dtype, in the order asked."""
        if (array, view) in self._maps:
            return self._maps[array, view][rows]
        spec = self._spec(array)
        self._check_committed(array, rows)
        mapped = self._map(spec, view)
        if mapped is not None:
            return mapped[rows]
        values = self._array(array)
        picked = values[rows, view] if isinstance(rows, slice) else values.oindex[rows, view]
        return np.asarray(picked)

    def mapped(self, array: str, view: int = 0) -> npt.NDArray[Any] | None:
        """Return all N rows as one array over the mapped chunk files, or None where chunks cannot be mapped in a row."""
        spec = self._spec(array)
        self._check_committed(array, slice(None))
        return self._map(spec, view)

    def _spec(self, array: str) -> ArraySpec:
        try:
            return self.header.array(array)
        except KeyError:
            raise StoreContentsError(
                f"{self.path} holds no array {array!r}; it holds {', '.join(s.name for s in self.header.arrays)}."
            ) from None

    def _check_committed(self, array: str, rows: npt.NDArray[np.int64] | slice) -> None:
        gaps = self.missing([array])
        if not gaps:
            return
        wanted = np.arange(self.header.rows)[rows]
        absent = np.concatenate([wanted[(wanted >= gap.start) & (wanted < gap.stop)] for gap in gaps])
        if len(absent):
            raise StoreContentsError(
                f"{self.path} lacks {len(absent)} of the {len(wanted)} rows asked of {array}, the first is row {absent[0]}. "
                "Run the same extract-features command again; it goes on where it stopped."
            )

    def _map(self, spec: ArraySpec, view: int) -> npt.NDArray[Any] | None:
        if (spec.name, view) in self._maps:
            return self._maps[spec.name, view]
        rows = self.chunk_rows[spec.name]
        keys = [chunk_key(i, view, len(spec.tail)) for i in range(-(-self.header.rows // rows))]
        paths = [self._chunk(spec, key) for key in keys]
        if not can_map(rows * spec.row_bytes, len(paths)):
            return None
        padded = map_files(paths, rows * spec.row_bytes, (len(paths) * rows, *spec.tail), spec.storage_dtype)
        mapped = padded[: self.header.rows]
        if not self.missing([spec.name]):  # chunks that are still to come would be zeros in a map that is kept
            self._maps[spec.name, view] = mapped
        return mapped

    def _chunk(self, spec: ArraySpec, key: str) -> Path | None:
        """Return the file of a chunk that holds committed rows, else None.

        Raises:
            StoreDamagedError: it is gone or cut off; a reader would take what is not there for zeros.
        """
        if key not in self._state.chunks.get(spec.name, {}):
            return None
        file, size = self.path / spec.name / key, self.chunk_rows[spec.name] * spec.row_bytes
        found = file.stat().st_size if file.exists() else None
        if found != size:
            seen = "is gone" if found is None else f"has {found} bytes instead of {size}"
            raise StoreDamagedError(f"{file} {seen}. Restore it, or remove this store and extract again.")
        return file

    def to_numpy(self, array: str, *, split: str | None = None, view: int = 0) -> npt.NDArray[Any]:
        """Return the committed `ok` rows of one array, (N, ...), bfloat16 as float32; `split` keeps one split."""
        keep = self.status() == "ok"
        if split is not None:
            keep &= np.asarray(self.table().split) == split
        values = self.read(array, np.flatnonzero(keep), view)
        if self.header.array(array).dtype == "bfloat16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values

    def close(self) -> None:
        """Release files and the writer's lock."""
        self._maps.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _header(path: Path, attributes: Mapping[str, Any]) -> Header:
    value = attributes.get("featurecache")
    if not isinstance(value, Mapping):
        raise StoreError(f"{path} is a Zarr group, but not a feature store: it has no 'featurecache' attribute.")
    if value["format_version"] != FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {value['format_version']}; this version of featurecache reads {FORMAT_VERSION}. "
            "Install the version that wrote it (see provenance.jsonl), or extract again."
        )
    return Header.from_json(value)
