"""Whether an HDF5 file is what was written, and making it so again: taken apart into its Zarr side, mended, assembled."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from featurecache.errors import StoreDamagedError
from featurecache.features import ArraySpec
from featurecache.files import sync_folder
from featurecache.stores import _verifying
from featurecache.stores._copying import Journal, header_from, replacing, small_files
from featurecache.stores._creation import LEDGER, ROOT, write_durably
from featurecache.stores._explaining import explained
from featurecache.stores._hdf5_block import Block, mapped_bytes, read_block, rest_of
from featurecache.stores._hdf5_file import Hdf5File, assemble, notes_of
from featurecache.stores._restoring import Makers, Material, Unlike, restored
from featurecache.stores._second_copy import COPY, SecondCopy, encoded
from featurecache.stores._side import clear, locked, remove_empty, side_of
from featurecache.stores._verifying import Damage, Examined, Seen, extent_of_chunk, place_of
from featurecache.stores.zarr import ZarrStore

Places = Mapping[str, tuple[int, int]]
"""Array of rows -> (first byte, number of bytes) in the file."""


def examine(path: Path, seen: Seen = lambda count: None) -> Examined:
    """Compare every bit of the file with its checksums; of a store that is not a file yet, its Zarr side."""
    if (side_of(path) / LEDGER).exists():
        return dataclasses.replace(_verifying.examine(side_of(path), seen), notes=notes_of(path))
    return _File(path, seen).examined()


def is_whole(path: Path) -> bool:
    """Return whether the file, whatever is beside it, is what was written."""
    return not _File(path).examined().damages


class _File:
    """A file, read as bytes; HDF5 is asked only where its part of the file is sound, or nothing else is left."""

    def __init__(self, path: Path, seen: Seen = lambda count: None) -> None:
        self.path, self.seen = path, seen
        self.damages: list[Damage] = []
        self.remarks: list[str] = []
        self.block, content = read_block(path)
        self.sound = True
        """Whether everything but the rows can be read through HDF5."""
        self.copy: SecondCopy | None
        self.places: Places
        if self.block is not None:
            self._from_block(self.block, content)
        else:
            self._from_hdf5(content)

    def _bad(self, what: str, way: _verifying.Way, array: str = "", rows: range | None = None, view: int = 0) -> None:
        self.damages.append(Damage(file=self.path.name, what=what, way=way, array=array, rows=rows, view=view))

    def _from_block(self, block: Block, content: bytes) -> None:
        self.copy, self.places = block.copy, block.places
        if content != block.content():
            self._bad("the block in front of HDF5 is not what was written", "journal")
        size = self.path.stat().st_size
        self.sound = rest_of(self.path, block.size, block.places, self.seen) == block.rest and size == block.file_bytes
        if size != block.file_bytes:
            self._bad(f"has {size} bytes instead of {block.file_bytes}", "data")
        elif not self.sound:
            self._bad(
                "the row table, the arrays of the classes or the structure of the file is not what was written", "data"
            )

    def _from_hdf5(self, content: bytes) -> None:
        """Read the journal and the places through HDF5: the block is damaged, or the file was written without one."""
        self.copy, self.places = None, {}
        try:
            file = Hdf5File(self.path)
        except StoreDamagedError as error:
            self.sound = False
            self._bad(str(error).partition(". ")[0], "")
            return
        try:
            journal = file.journal()
            self.copy, self.places = SecondCopy(journal.metadata, journal.ledger), file.places()
            if content:
                self._bad("the block in front of HDF5 is not what was written", "journal")
            else:
                self.remarks.append("written without a checksum of its own: only what the ledger knows is compared")
            self._without_block(file)
        finally:
            file.close()

    def _without_block(self, file: Hdf5File) -> None:
        try:
            small_files(file, file.journal())
            for spec in file.header.constants:
                for _ in file.class_pieces(spec):
                    pass
        except (StoreDamagedError, OSError, ValueError, KeyError) as error:
            self.sound = False
            self._bad(str(error).partition(". ")[0], "data")

    def examined(self) -> Examined:
        """Return what is found of the whole file."""
        if self.copy is None:
            return Examined(notes=notes_of(self.path), damages=tuple(self.damages))
        journal = Journal(self.copy.ledger, self.copy.metadata)
        header, state = header_from(self.path, journal.metadata[ROOT]), journal.state()
        for spec in header.arrays:
            for key, rows, view, content in self.chunks(spec, journal):
                self.seen(len(rows) * spec.row_bytes)
                if content is None or zlib.crc32(content) != state.chunks[spec.name][key][1]:
                    what = "is cut off" if content is None else "does not hold the rows that were committed"
                    self._bad(what, "rows", spec.name, rows, view)
        return Examined(
            notes=notes_of(self.path), damages=tuple(self.damages), header=header, state=state, finished=True,
            ledger=journal.ledger, metadata=journal.metadata, remarks=tuple(self.remarks),
        )  # fmt: skip

    def chunks(self, spec: ArraySpec, journal: Journal) -> Iterator[tuple[str, range, int, bytes | None]]:
        """Yield (key, rows, view, bytes or None where the file ends before) of what the ledger calls a chunk."""
        size = extent_of_chunk(journal.metadata, spec.name)
        first, count = self.places.get(spec.name, (0, 0))
        content = mapped_bytes(self.path)
        header = header_from(self.path, journal.metadata[ROOT])
        shape = (header.rows, header.views, spec.row_bytes)
        whole = count == int(np.prod(shape, dtype=np.int64)) and first + count <= len(content)
        array = np.frombuffer(content, np.uint8, count, first).reshape(shape) if whole else None
        for key, (committed, _) in sorted(journal.state().chunks.get(spec.name, {}).items()):
            rows, view = place_of(key, size, committed)
            yield key, rows, view, None if array is None else array[rows.start : rows.stop, view].tobytes()

    def salvage(self, side: Path) -> bool:
        """Write what is sound into a folder, as a Zarr store without its ledger; return False where nothing can be."""
        if self.copy is None:
            return False
        journal = Journal(self.copy.ledger, self.copy.metadata)
        header, state = header_from(self.path, journal.metadata[ROOT]), journal.state()
        for name, content in journal.metadata.items():
            write_durably(side / name, content)
        for spec in header.arrays:
            size = extent_of_chunk(journal.metadata, spec.name) * spec.row_bytes
            for key, _, _, rows in self.chunks(spec, journal):
                if rows is not None and zlib.crc32(rows) == state.chunks[spec.name][key][1]:
                    write_durably(side / spec.name / key, rows.ljust(size, b"\0"))
        if self.sound:
            self._small(side)
        for place in [side, *(p for p in side.rglob("*") if p.is_dir())]:
            sync_folder(place)
        write_durably(side / COPY, encoded(journal.metadata, journal.ledger))
        return True

    def _small(self, side: Path) -> None:
        file = Hdf5File(self.path)
        try:
            for name, content in small_files(file, file.journal()).items():
                write_durably(side / name, content)
            for spec in file.header.constants:
                for piece in file.class_pieces(spec):
                    write_durably(side / piece.name, piece.content)
        finally:
            file.close()


def mend(path: Path, material: Material | Makers, *, accept: bool) -> list[Unlike]:
    """Mend a store as far as it can be; return what came out otherwise than it is recorded, and was left as it is.

    The file stays until a whole one takes its name; a kill before that leaves it, or a whole Zarr side beside it.

    Raises:
        StoreBusyError: it is being written.
    """
    side = side_of(path)
    lock = locked(side)
    from_file = not (side / LEDGER).exists()
    try:
        with explained(f"mend {path}"):
            unlike = _mended(path, side, material, accept, from_file=from_file)
    except BaseException:
        if from_file:
            clear(side)
        raise
    finally:
        done = not (side / LEDGER).exists()
        lock.release(for_good=done)
        if done:
            remove_empty(side)
    return unlike


def _mended(path: Path, side: Path, material: Material | Makers, accept: bool, *, from_file: bool) -> list[Unlike]:
    if from_file:
        clear(side)
        if not _File(path).salvage(side):
            return []
    unlike = restored(side, _verifying.examine(side), material, accept=accept)
    found = _verifying.examine(side)
    if found.damages:
        if from_file:
            clear(side)
    elif found.finished:
        with replacing(path) as temporary:
            assemble(ZarrStore(side), temporary)
        clear(side)
    return unlike
