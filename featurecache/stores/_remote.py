"""A finished Zarr store read where it lies in an object store: ledger and header first, then whole chunks, each checked.

Nothing is mapped: a chunk is fetched whole, compared with the ledger's checksum, and kept while there is room. Nothing is
written: a commit needs fsync, rename and a lock, which an object store has not.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from featurecache.datasets import RowTable
from featurecache.errors import StoreContentsError, StoreDamagedError, StoreError, StoreNotFoundError
from featurecache.features import ArraySpec, Header
from featurecache.places import Url
from featurecache.stores import _ledger
from featurecache.stores._choosing import spec_called
from featurecache.stores._chunks import chunk_key
from featurecache.stores._constants import CLASSES, Cut, Piece, checked_pieces
from featurecache.stores._copying import Journal, header_from
from featurecache.stores._creation import LEDGER, ROOT, snapshot
from featurecache.stores._layout import TABLE_COLUMNS, column
from featurecache.stores.zarr import ZarrStore

CACHE_SHARE = 4
"""Chunks are kept in at most the machine's memory divided by this."""
TOGETHER = 8
"""Chunks that are fetched side by side."""


def cache_bytes() -> int:
    """Return the most that the chunks of one store may take."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // CACHE_SHARE


def open_remote(url: Url, *, writable: bool = False) -> RemoteStore:
    """Open a finished Zarr store for reading.

    Raises:
        StoreNotFoundError, StoreDamagedError: there is none, or it is not what was written.
        StoreError: it was to be written, or is no Zarr store.
        PlaceError: it cannot be reached.
    """
    if writable:
        raise not_written(url)
    if url.suffix != ".zarr":
        raise StoreError(
            f"{url} cannot be read where it lies: of the store formats, only .zarr can. Copy the file to a disk of this "
            "machine, or put its Zarr form there: featurecache convert STORE --out X.zarr"
        )
    if not (url / LEDGER).exists():
        raise StoreNotFoundError(f"{url} is not a feature store: there is no {LEDGER} in it. Look at the name.")
    return RemoteStore(cast(Path, url))


def not_written(url: Url) -> StoreError:
    """Return the refusal of whoever wants to write there, with the way."""
    return StoreError(
        f"{url} cannot be written: rows become real by fsync, rename and a lock, which such a place has not. "
        f"Write the store on a disk of this machine, copy its folder there when it is finished (fsspec and the tools of the "
        f"place can), and check the copy by reading it: featurecache info {url}"
    )


class RemoteStore(ZarrStore):
    """A Zarr store behind a URL, for reading alone. See `FeatureStore` for the contract."""

    def _load(self, lock: Any = None) -> None:
        root, records, _ = snapshot(self.path)
        self._state = _ledger.Committed.replay(records)
        self.header = header_from(self.path, root)
        self._metadata = json.loads(root)["consolidated_metadata"]["metadata"]
        self.room = cache_bytes()
        """Bytes of chunks that are kept; an order of rows that comes back to more than that fetches them again."""
        chunk_rows = {spec.name: self._chunk(spec.name)[0] for spec in self.header.arrays}
        self._remote = RemoteRows(_url(self), self.header, self._state, chunk_rows, self.room)

    def _chunk(self, array: str) -> list[int]:
        shape: list[int] = self._metadata[array]["chunk_grid"]["configuration"]["chunk_shape"]
        return shape

    def table(self) -> RowTable:
        """Return the row table, its files checked; read once, then kept."""
        if self._table is None:
            names = [name for name in self._state.files if name.partition("/")[0] in TABLE_COLUMNS]
            self._table = RowTable(**_columns(self._checked(names)))
        return self._table

    def column(self, name: str, rows: slice) -> npt.NDArray[Any]:
        """Return some rows of a column of the row table, which is fetched whole."""
        return np.asarray(getattr(self.table(), name)[rows])

    def journal(self) -> Journal:
        """Return the ledger and Zarr's metadata, its files checked."""
        names = [name for name in self._state.files if name.rpartition("/")[2] == ROOT]
        return Journal((self.path / LEDGER).read_bytes(), self._checked(names))

    def _checked(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return name -> content of files of metadata or of the row table, fetched side by side.

        Raises:
            StoreDamagedError: one is not what was written.
        """
        try:
            contents = dict(zip(names, _url(self).read_many(names), strict=True))
        except FileNotFoundError as error:
            raise StoreDamagedError(f"a file of {self.path} is gone ({error}). Copy the store again.") from error
        for name, content in contents.items():
            if zlib.crc32(content) != self._state.files[name]:
                raise StoreDamagedError(f"{self.path}/{name} is not the file that was written. Copy the store again.")
        return contents

    def read(self, array: str, rows: npt.NDArray[np.int64] | slice, view: int = 0) -> npt.NDArray[Any]:
        """Return the stored values of `rows`, (B, ...) in storage dtype, in the order asked."""
        return self._remote.read(array, rows, view)

    def mapped(self, array: str, view: int = 0) -> npt.NDArray[Any] | None:
        """Return None: what is elsewhere cannot be mapped."""
        spec_called(self.path, self.header, array)
        return None

    def block(self, spec: ArraySpec, rows: slice) -> npt.NDArray[Any]:
        """Return (B, V, ...) of the rows of one chunk."""
        return np.stack([self._remote.read(spec.name, rows, view) for view in range(self.header.views)], axis=1)

    def class_pieces(self, spec: ArraySpec) -> Iterator[Piece]:
        """Yield what every file of an array of the classes holds, checked."""

        def content(name: str, classes: range) -> bytes:
            try:
                return (_url(self) / name).read_bytes()
            except FileNotFoundError:
                return b""

        return checked_pieces(self.path, Cut(spec, self._chunk(spec.name)[CLASSES]), self._state.files, content)

    def close(self) -> None:
        """Let go of the chunks that are kept."""
        self._remote.forget()


def _url(store: RemoteStore) -> Url:
    return cast(Url, store.path)


def _columns(contents: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the columns of the row table in the files of their arrays, by zarr itself."""
    buffer = default_buffer_prototype().buffer
    memory = MemoryStore({name: buffer.from_bytes(content) for name, content in contents.items()})
    return {name: column(zarr.open_array(memory, path=name, mode="r", zarr_format=3)) for name in TABLE_COLUMNS}


class RemoteRows:
    """Committed rows, from whole chunks of which the last used are kept."""

    def __init__(
        self, url: Url, header: Header, state: _ledger.Committed, chunk_rows: Mapping[str, int], room: int
    ) -> None:
        self.url, self.header, self._state, self.chunk_rows, self.room = url, header, state, chunk_rows, room
        self._kept: OrderedDict[str, npt.NDArray[Any]] = OrderedDict()
        self._bytes = 0

    def read(self, array: str, rows: npt.NDArray[np.int64] | slice, view: int) -> npt.NDArray[Any]:
        """Return the stored values of `rows`, (B, ...) in storage dtype, in the order asked."""
        spec = spec_called(cast(Path, self.url), self.header, array)
        wanted = np.arange(self.header.rows)[rows]
        numbers, inside = np.divmod(wanted, self.chunk_rows[array])
        found = np.empty((len(wanted), *spec.tail), spec.storage_dtype)
        needed = np.unique(numbers)
        for start in range(0, len(needed), TOGETHER):
            part = needed[start : start + TOGETHER]
            for number, values in zip(part, self._chunks(spec, part, view), strict=True):
                which = np.flatnonzero(numbers == number)
                if len(absent := np.flatnonzero(inside[which] >= len(values))):
                    raise self._lacking(spec, int(wanted[which[absent[0]]]))
                found[which] = values[inside[which]]
        return found

    def _lacking(self, spec: ArraySpec, row: int) -> StoreContentsError:
        return StoreContentsError(
            f"{self.url} lacks row {row} of {spec.name}: it was copied before it was finished. "
            "Finish the store where it is written, then copy it again."
        )

    def _chunks(self, spec: ArraySpec, numbers: Sequence[int] | npt.NDArray[Any], view: int) -> list[npt.NDArray[Any]]:
        """Return the committed rows of some chunks, those that are not kept fetched side by side."""
        keys = [chunk_key(int(number), view, len(spec.tail)) for number in numbers]
        known = self._state.chunks.get(spec.name, {})
        for number, key in zip(numbers, keys, strict=True):
            if key not in known:
                raise self._lacking(spec, int(number) * self.chunk_rows[spec.name])
        names = [f"{spec.name}/{key}" for key in keys]
        kept = {name: self._kept[name] for name in names if name in self._kept}
        lacking = [name for name in names if name not in kept]
        for name, content in zip(lacking, self._fetched(lacking), strict=True):
            count, crc = known[name.removeprefix(f"{spec.name}/")]
            good = memoryview(content)[: count * spec.row_bytes]
            if len(good) != count * spec.row_bytes or zlib.crc32(good) != crc:
                raise StoreDamagedError(f"{self.url}/{name} is not the chunk that was committed. Copy the store again.")
            kept[name] = np.frombuffer(good, spec.storage_dtype).reshape(count, *spec.tail)
        for name in names:
            self._keep(name, kept[name])
        return [kept[name] for name in names]

    def _fetched(self, names: Sequence[str]) -> list[bytes]:
        try:
            return self.url.read_many(names)
        except FileNotFoundError as error:
            raise StoreDamagedError(f"a chunk of {self.url} is gone ({error}). Copy the store again.") from error

    def _keep(self, name: str, values: npt.NDArray[Any]) -> None:
        if name not in self._kept:
            self._bytes += values.nbytes
        self._kept[name] = values
        self._kept.move_to_end(name)
        while self._bytes > self.room and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def forget(self) -> None:
        """Let go of what is kept."""
        self._kept.clear()
        self._bytes = 0
