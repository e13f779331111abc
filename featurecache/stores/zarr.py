"""Zarr v3 stores: one array per layer, uncompressed chunks that map like RAM, a ledger of what is real."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from featurecache.datasets import RowTable
from featurecache.errors import StoreContentsError, StoreDamagedError, StoreError, StoreNotFoundError
from featurecache.features import FORMAT_VERSION, Header
from featurecache.files import sync_folder
from featurecache.stores import _ledger
from featurecache.stores._chunks import chunk_key
from featurecache.stores._layout import empty_store, status_files
from featurecache.stores._mapping import can_map, map_files
from featurecache.stores._writer import LEDGER, LOCK, Writer, acquire

SUFFIXES = (".zarr",)


def create(path: Path, header: Header, table: RowTable, *, chunk_multiple: int) -> ZarrStore:
    """Create an empty store under a temporary name, then give it its own: it is there whole, or not at all."""
    if path.exists():
        raise StoreError(f"{path} exists already. Give another --out, or remove it first.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    files = empty_store(header, table, chunk_multiple)
    sums = {name: zlib.crc32(content) for name, content in files.items()}
    files[LEDGER] = _ledger.encode({"kind": "created", "files": sums})
    try:
        for name, content in files.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for folder in [temporary, *(p for p in temporary.rglob("*") if p.is_dir())]:
            sync_folder(folder)
        os.rename(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(f"cannot create {path}: {error.strerror or error}. Nothing was left behind.") from error
    sync_folder(path.parent)
    return ZarrStore(path, writable=True)


def open(path: Path, *, writable: bool = False) -> ZarrStore:
    """Open an existing store."""
    if not (path / LEDGER).exists():
        what = "is not a feature store (it has no ledger)" if path.exists() else "does not exist"
        raise StoreNotFoundError(
            f"{path} {what}. Make one with: featurecache extract-features DATA --backbone NAME --out {path}"
        )
    return ZarrStore(path, writable=writable)


class ZarrStore:
    """A store in one folder. See `FeatureStore` for the contract."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        lock = acquire(path / LOCK) if writable else None  # first: the ledger may grow until the lock is ours
        records, good = _ledger.read_records(path / LEDGER)
        self._state = _ledger.Committed.replay(records)
        self._check_created("zarr.json")
        self._root = zarr.open_group(str(path), mode="r", zarr_format=3)
        self.header = _header(path, self._root)
        self.chunk_rows = {spec.name: int(self._array(spec.name).chunks[0]) for spec in self.header.arrays}
        self._table: RowTable | None = None
        self._maps: dict[tuple[str, int], npt.NDArray[Any]] = {}
        self._writer: Writer | None = None
        if lock is not None:
            self._writer = Writer(path, lock, self.header, self.chunk_rows, self._state)
            _ledger.cut(path / LEDGER, good)

    def _check_created(self, name: str) -> None:
        content = (self.path / name).read_bytes()
        if zlib.crc32(content) != self._state.files[name]:
            raise StoreDamagedError(
                f"{self.path / name} is not the file that was written. Restore it, or extract again."
            )

    def _array(self, name: str) -> zarr.Array[Any]:
        found = self._root[name]
        assert isinstance(found, zarr.Array)
        return found

    @property
    def finished(self) -> bool:
        """Whether the store is sealed: nothing missing, canonical ledger."""
        return self._state.finished

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
            columns = {name: self._array(name)[:] for name in ("sample_id", "target", "split", "domain", "group")}
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

    def finish(self) -> None:
        """Seal the store; its files are from then on a function of its content alone."""
        gaps = self.missing()
        if gaps:
            raise StoreContentsError(f"{self.path} lacks {sum(map(len, gaps))} rows, so it cannot be finished.")
        self._writing().seal(self.header.rows, status_files(list(self.status())))

    def read(self, array: str, rows: npt.NDArray[np.int64] | slice, view: int = 0) -> npt.NDArray[Any]:
        """Return the stored values of `rows`, (B, ...) in storage dtype, in the order asked."""
        mapped = self.mapped(array, view)
        if mapped is not None:
            return mapped[rows]
        values = self._array(array)
        picked = values[rows, view] if isinstance(rows, slice) else values.oindex[rows, view]
        return np.asarray(picked)

    def mapped(self, array: str, view: int = 0) -> npt.NDArray[Any] | None:
        """Return all N rows as one array over the mapped chunk files, or None where chunks cannot be mapped in a row."""
        if (array, view) not in self._maps:
            try:
                spec = self.header.array(array)
            except KeyError:
                raise StoreContentsError(
                    f"{self.path} holds no array {array!r}; it holds {', '.join(s.name for s in self.header.arrays)}."
                ) from None
            rows = self.chunk_rows[array]
            count = -(-self.header.rows // rows)
            if not can_map(rows * spec.row_bytes, count):
                return None
            paths = [self.path / array / chunk_key(i, view, len(spec.tail)) for i in range(count)]
            padded = map_files(paths, rows * spec.row_bytes, (count * rows, *spec.tail), spec.storage_dtype)
            self._maps[array, view] = padded[: self.header.rows]
        return self._maps[array, view]

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


def _header(path: Path, root: zarr.Group) -> Header:
    value = root.attrs.get("featurecache")
    if not isinstance(value, Mapping):
        raise StoreError(f"{path} is a Zarr group, but not a feature store: it has no 'featurecache' attribute.")
    if value["format_version"] != FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {value['format_version']}; this version of featurecache reads {FORMAT_VERSION}. "
            "Install the version that wrote it (see provenance.jsonl), or extract again."
        )
    return Header.from_json(value)
