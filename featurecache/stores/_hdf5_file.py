"""A finished store as one HDF5 file: arrays in one piece each, so that they map like RAM and any h5py reader opens them.

Object headers are those of HDF5 1.8, which carry checksums. The file is a function of the store's content alone.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from featurecache.datasets import RowTable
from featurecache.errors import StoreDamagedError, StoreNotFoundError
from featurecache.features import ArraySpec, Header
from featurecache.stores._choosing import spec_called
from featurecache.stores._constants import CLASSES, Cut, Piece, assembled, at, checked_pieces, constant_called
from featurecache.stores._copying import Copied, Journal, check_copy, checked_blocks, header_from
from featurecache.stores._creation import ROOT
from featurecache.stores._hdf5_block import room_for, write_block
from featurecache.stores._layout import TEXT_COLUMNS, column
from featurecache.stores._second_copy import SecondCopy

LAYOUT: Mapping[str, Any] = {"libver": ("v108", "v108"), "alignment_threshold": 1, "alignment_interval": 64}
LEDGER, METADATA = "journal/ledger", "journal/metadata"


def assemble(source: Copied, target: Path) -> None:
    """Write a finished store as one file, make it durable, and read it again against its source.

    Raises:
        StoreDamagedError: the source does not hold what was committed.
        OSError: the disk is full or refuses; what is at `target` is then not to be used.
    """
    room = _room(source)
    journal, header = source.journal(), source.header
    second = SecondCopy(journal.metadata, journal.ledger)
    with _Reserved(target, room) as disk, h5py.File(disk, "w", userblock_size=room_for(second), **LAYOUT) as file:
        disk.reserve(room)
        file.attrs["featurecache"] = json.dumps(header.to_json(), ensure_ascii=False, sort_keys=True)
        for spec in header.arrays:
            array = file.create_dataset(spec.name, (header.rows, header.views, *spec.tail), spec.storage_dtype)
            array.attrs["logical_dtype"] = spec.dtype
            for start, values in checked_blocks(source, spec):
                array[start : start + len(values)] = values
        for spec in header.constants:
            array = file.create_dataset(spec.name, spec.tail, spec.storage_dtype)
            array.attrs["logical_dtype"] = spec.dtype
            for piece in source.class_pieces(spec):
                array[at(piece.classes)] = piece.values
        for name in TEXT_COLUMNS:
            _text(file, name, getattr(source.table(), name))
        file.create_dataset("target", data=np.asarray(source.table().target))
        _text(file, "status", source.status())
        file.create_dataset(LEDGER, data=np.bytes_(journal.ledger))
        metadata = {name: content.decode() for name, content in journal.metadata.items()}
        file.create_dataset(METADATA, data=np.bytes_(json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode()))
    write_block(target, second, [spec.name for spec in header.arrays])
    copy = Hdf5File(target)
    try:
        check_copy(copy, source)
    finally:
        copy.close()


class _Reserved(io.FileIO):
    """A file whose room is taken before HDF5 writes to it, and which is durable when it is left.

    HDF5 cannot close a file after a write has failed, and takes the whole process with it later.
    """

    def __init__(self, path: Path, room: int) -> None:
        super().__init__(path, "w+")
        try:
            self.reserve(room)
            self.truncate(0)  # HDF5 begins with an empty file only; it gives back what is too much when it closes
        except BaseException:
            self.close()
            raise

    def reserve(self, room: int) -> None:
        """Take the room on the disk.

        Raises:
            OSError: there is not so much.
        """
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(self.fileno(), 0, room)

    def __exit__(self, *raised: Any) -> None:
        try:
            if raised[0] is None:
                os.fsync(self.fileno())
        finally:
            self.close()


def _room(source: Copied) -> int:
    """Return at least as many bytes as the file will take; what is too much is given back at its end."""
    header, table, journal = source.header, source.table(), source.journal()
    features = sum(header.rows * header.views * spec.row_bytes + 4096 for spec in header.arrays)
    features += sum(spec.row_bytes + 4096 for spec in header.constants)
    texts = (*(getattr(table, name) for name in TEXT_COLUMNS), source.status())
    words = sum(2 * len(str(value).encode()) + 64 for column in texts for value in column)
    small = len(journal.ledger) + 2 * sum(map(len, journal.metadata.values())) + len(json.dumps(header.to_json()))
    block = room_for(SecondCopy(journal.metadata, journal.ledger))
    return features + words + np.asarray(table.target).nbytes + 2 * small + block + 2**17


def _text(file: h5py.File, name: str, values: Sequence[str] | npt.NDArray[Any]) -> None:
    file.create_dataset(name, data=np.array([str(value) for value in values], object), dtype=h5py.string_dtype())


class Hdf5File:
    """Reads one file; it stays the file that was opened, whatever gets its name later."""

    def __init__(self, path: Path) -> None:
        self.path, self.notes = path, notes_of(path)
        try:
            self._file = h5py.File(path, "r", locking="best-effort")
        except OSError as error:
            raise StoreDamagedError(
                f"{path} cannot be opened as HDF5: it is cut off, damaged or something else ({error}). "
                f"Mend it with: featurecache verify {path} --repair"
            ) from error
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise

    def _load(self) -> None:
        if LEDGER not in self._file or METADATA not in self._file:
            raise StoreNotFoundError(
                f"{self.path} is there, but it is not a feature store: it has no journal. Give another path."
            )
        metadata = json.loads(self._file[METADATA][()])
        self._journal = Journal(bytes(self._file[LEDGER][()]), {name: text.encode() for name, text in metadata.items()})
        files = self._journal.state().files
        self.header: Header = header_from(self.path, self._journal.metadata[ROOT])
        shown = json.loads(self._file.attrs["featurecache"])
        known = {name: zlib.crc32(content) for name, content in self._journal.metadata.items()}
        if shown != json.loads(json.dumps(self.header.to_json())) or not known.items() <= files.items():
            raise StoreDamagedError(
                f"{self.path}: the header is not the one that was written. Mend it with: featurecache verify {self.path} --repair"
            )
        self._table: RowTable | None = None
        self._maps: dict[str, npt.NDArray[Any]] = {}

    def table(self) -> RowTable:
        """Return the row table; read once, then kept."""
        if self._table is None:
            texts = {name: self._strings(name) for name in TEXT_COLUMNS}
            columns: dict[str, Any] = {**texts, "target": self._file["target"][:]}
            self._table = RowTable(**columns)
        return self._table

    def column(self, name: str, rows: slice) -> npt.NDArray[Any]:
        """Return some rows of a column of the row table, which is not kept."""
        values = self._file[name]
        return column(values if name == "target" else values.asstr(), rows)

    def status(self) -> npt.NDArray[Any]:
        """Return (N,) text: "ok" or "skipped: reason"."""
        return self._strings("status")

    def readable(
        self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Return (N,) whether the image of a row could be read."""
        readable = np.ones(self.header.rows, dtype=bool)
        state = self._journal.state()
        readable[[*state.skipped, *state.deleted]] = False
        return readable

    def _strings(self, name: str) -> npt.NDArray[Any]:
        return column(self._file[name].asstr())

    def journal(self) -> Journal:
        """Return the ledger and Zarr's metadata."""
        return self._journal

    def places(self) -> dict[str, tuple[int, int]]:
        """Return array of rows -> (first byte, number of bytes) in the file, of those that lie in one piece."""
        found = {spec.name: self._file[spec.name].id for spec in self.header.arrays}
        return {n: (i.get_offset(), i.get_storage_size()) for n, i in found.items() if i.get_offset() is not None}

    def block(self, spec: ArraySpec, rows: slice) -> npt.NDArray[Any]:
        """Return (B, V, ...) of consecutive rows, read from the file and not mapped."""
        try:
            return np.asarray(self._file[spec.name][rows])
        except (OSError, KeyError, ValueError) as error:
            raise StoreDamagedError(
                f"{self.path}: {spec.name} cannot be read: {error}. Mend it with: featurecache verify {self.path} --repair"
            ) from error

    def constant(self, name: str) -> npt.NDArray[Any]:
        """Return an array of the classes, whole, in storage dtype."""
        spec = constant_called(self.path, self.header, name)
        return assembled(spec, self.class_pieces(spec))

    def class_pieces(self, spec: ArraySpec) -> Iterator[Piece]:
        """Yield the classes of an array of the classes in the pieces of its Zarr files, checked."""
        cut = Cut(spec, self._journal.chunk(spec.name)[CLASSES])

        def content(name: str, classes: range) -> bytes:
            try:
                return cut.encoded(np.asarray(self._file[spec.name][at(classes)]))
            except (OSError, KeyError, ValueError, TypeError) as error:
                raise StoreDamagedError(
                    f"{self.path}: {spec.name} cannot be read: {error}. Mend it with: featurecache verify {self.path} --repair"
                ) from error

        return checked_pieces(self.path, cut, self._journal.state().files, content)

    def read(self, array: str, rows: npt.NDArray[np.int64] | slice, view: int = 0) -> npt.NDArray[Any]:
        """Return the stored values of `rows`, (B, ...) in storage dtype, in the order asked."""
        mapped = self.mapped(array, view)
        if mapped is not None:
            return mapped[rows]
        wanted = np.arange(self.header.rows)[rows]
        ascending, places = np.unique(wanted, return_inverse=True)  # h5py takes no other order
        return np.asarray(self._file[array][ascending, view])[places]

    def mapped(self, array: str, view: int = 0) -> npt.NDArray[Any] | None:
        """Return all N rows over the mapped file, or None where another program has stored the array in chunks."""
        if array not in self._maps:
            found = self._map(self._spec(array))
            if found is None:
                return None
            self._maps[array] = found
        return self._maps[array][:, view]

    def _spec(self, array: str) -> ArraySpec:
        return spec_called(self.path, self.header, array)

    def _map(self, spec: ArraySpec) -> npt.NDArray[Any] | None:
        dataset = self._file[spec.name]
        shape = (self.header.rows, self.header.views, *spec.tail)
        if dataset.shape != shape or dataset.dtype != spec.storage_dtype:
            raise StoreDamagedError(f"{self.path}: {spec.name} is {dataset.shape} of {dataset.dtype}, not {shape}.")
        offset, handle = dataset.id.get_offset(), self._file.id.get_vfd_handle()
        if offset is None:
            return None
        count = int(np.prod(shape, dtype=np.int64))
        first = offset - offset % mmap.ALLOCATIONGRANULARITY
        length = offset - first + count * spec.storage_dtype.itemsize
        if first + length > os.fstat(handle).st_size:
            raise StoreDamagedError(
                f"{self.path} is cut off inside {spec.name}. Mend it with: featurecache verify {self.path} --repair"
            )
        pages = mmap.mmap(handle, length, access=mmap.ACCESS_COPY, offset=first)
        return np.frombuffer(pages, spec.storage_dtype, count, offset - first).reshape(shape)

    def close(self) -> None:
        """Release the file; arrays that were handed out stay valid."""
        self._maps.clear()
        self._file.close()


def notes_of(path: Path) -> Path:
    """Return the folder beside a file for its provenance and scores."""
    return path.with_name(f"{path.name}.notes")
