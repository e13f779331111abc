"""The same store in another format: what is copied, and how a copy is checked before it gets its name.

A finished store is its row table, its blocks of rows, and its journal: the ledger and Zarr's metadata, as they are on
disk. Every format keeps the journal, so that the ledger's checksums hold for every copy and a store comes back from another
format byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from featurecache.errors import StoreDamagedError, StoreError
from featurecache.features import FORMAT_VERSION, ArraySpec, Header
from featurecache.files import sync_folder, write_atomic
from featurecache.stores import _ledger
from featurecache.stores._chunks import ChunkWriter, chunk_key, view_of
from featurecache.stores._constants import ROOM, Piece
from featurecache.stores._creation import LEDGER, ROOT, checked, remove_leftovers, temporary_name, write_durably
from featurecache.stores._layout import TABLE_COLUMNS, status_files, table_files
from featurecache.stores._second_copy import COPY, encoded

if TYPE_CHECKING:
    from featurecache.datasets import RowTable

NOTES = ("provenance.jsonl", "scores")
"""What stands beside the features and is no part of them."""


@dataclass(frozen=True, slots=True)
class Journal:
    """What makes a finished store the same store in any format."""

    ledger: bytes
    metadata: Mapping[str, bytes]
    """Path of each file of Zarr metadata -> its content; that of the root holds the header."""

    def state(self) -> _ledger.Committed:
        """Return what the ledger calls committed."""
        return _ledger.Committed.replay(_ledger.good_records(self.ledger.splitlines(keepends=True))[0])

    def digest(self, array: str) -> str:
        """Return what changes whenever the committed clean rows of an array, the row table or the skipped rows do."""
        state = self.state()
        table = {n: crc for n, crc in state.files.items() if Path(n).name != ROOT and not n.startswith(f"{ROOM}/")}
        clean = {key: known for key, known in state.chunks.get(array, {}).items() if view_of(key) == 0}
        seen = [sorted(clean.items()), sorted(table.items()), sorted(state.skipped.items())]
        return f"{zlib.crc32(json.dumps(seen).encode()):08x}"

    def chunk(self, array: str) -> tuple[int, ...]:
        """Return the shape of a chunk, which is what a checksum of the ledger covers; rows, or classes, may be fewer."""
        return tuple(json.loads(self.metadata[f"{array}/{ROOT}"])["chunk_grid"]["configuration"]["chunk_shape"])


def read_journal(path: Path, files: Mapping[str, int], root: bytes) -> Journal:
    """Return the ledger and Zarr's metadata of the store at `path`.

    Args:
        path: the store.
        files: relative name -> checksum, as the ledger has them.
        root: metadata of the root; the one that the ledger names may not have got its name yet.

    Raises:
        OSError, StoreDamagedError: a file cannot be read, or is not what was written.
    """
    names = {name: crc for name, crc in files.items() if Path(name).name == ROOT}
    metadata = {name: root if name == ROOT else checked(path, name, crc) for name, crc in names.items()}
    return Journal((path / LEDGER).read_bytes(), metadata)


class Copied(Protocol):
    """A finished store as a copy sees it."""

    path: Path
    notes: Path
    header: Header

    def table(self) -> RowTable:
        """Return the row table."""

    def status(self) -> npt.NDArray[Any]:
        """Return (N,) text."""

    def journal(self) -> Journal:
        """Return the ledger and Zarr's metadata."""

    def block(self, spec: ArraySpec, rows: slice) -> npt.NDArray[Any]:
        """Return (B, V, ...) of the rows of one chunk, read from the file and not mapped, so that memory stays bounded."""

    def class_pieces(self, spec: ArraySpec) -> Iterator[Piece]:
        """Yield the classes of an array of the classes in the pieces of its Zarr files, compared with the checksums."""


def header_from(path: Path, root: bytes) -> Header:
    """Return the header in the metadata of a store's root.

    Raises:
        StoreError: it is not a feature store, or one of another format version.
    """
    value = json.loads(root)["attributes"].get("featurecache")
    if not isinstance(value, Mapping):
        raise StoreError(f"{path} is a Zarr group, but not a feature store: it has no 'featurecache' attribute.")
    if value["format_version"] != FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {value['format_version']}; this version of featurecache reads {FORMAT_VERSION}. "
            "Install the version that wrote it (see provenance.jsonl), or extract again."
        )
    return Header.from_json(value)


def checked_blocks(store: Copied, spec: ArraySpec) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield (first row, (B, V, ...) values) of every chunk of one array, compared with the checksums of the ledger.

    Raises:
        StoreDamagedError: they are not the values that were committed.
    """
    journal = store.journal()
    sums, size = journal.state().chunks[spec.name], journal.chunk(spec.name)[0]
    for number, start in enumerate(range(0, store.header.rows, size)):
        stop = min(start + size, store.header.rows)
        values = store.block(spec, slice(start, stop))
        for view in range(store.header.views):
            if (
                zlib.crc32(np.ascontiguousarray(values[:, view]).data)
                != sums[chunk_key(number, view, len(spec.tail))][1]
            ):
                raise StoreDamagedError(
                    f"{store.path}: rows {start} to {stop - 1} of {spec.name} are not the values that were committed. "
                    f"Mend them with: featurecache verify {store.path} --repair"
                )
        yield start, values


def check_copy(copy: Copied, source: Copied) -> None:
    """Read a copy again, array by array, against its source.

    Raises:
        StoreDamagedError: they are not the same store; names the array.
    """
    if copy.journal() != source.journal():
        raise StoreDamagedError(
            f"{copy.path} holds another ledger than {source.path}. Try again; {source.path} is whole."
        )
    columns = {name: (getattr(copy.table(), name), getattr(source.table(), name)) for name in TABLE_COLUMNS}
    for name, (ours, theirs) in {**columns, "status": (copy.status(), source.status())}.items():
        if not _equal(np.asarray(ours), np.asarray(theirs)):
            raise StoreDamagedError(
                f"{copy.path} holds another {name} than {source.path}. Try again; the source is whole."
            )
    for spec in source.header.arrays:
        for _ in checked_blocks(copy, spec):
            pass
    for spec in source.header.constants:
        for _ in copy.class_pieces(spec):
            pass


def _equal(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> bool:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return bool((ours == theirs).all()) if ours.dtype.kind == "T" else ours.tobytes() == theirs.tobytes()


def take_apart(source: Copied, folder: Path) -> None:
    """Write `source` as a Zarr store into an existing folder; the ledger, which makes it one, comes last.

    Raises:
        StoreDamagedError: the source does not hold what was committed.
    """
    journal = source.journal()
    for name, content in small_files(source, journal).items():
        write_durably(folder / name, content)
    with ThreadPoolExecutor(8, thread_name_prefix="fsync") as pool:
        for spec in source.header.arrays:
            writer = ChunkWriter(folder, spec, journal.chunk(spec.name)[0], {})
            try:
                for start, values in checked_blocks(source, spec):
                    writer.write(start, values, pool, range(source.header.views))
                for waiting in writer.settle(pool):
                    waiting.result()
            finally:
                writer.close()
    for spec in source.header.constants:
        for piece in source.class_pieces(spec):
            write_durably(folder / piece.name, piece.content)
    for place in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync_folder(place)
    write_durably(folder / COPY, encoded(journal.metadata, journal.ledger))
    write_atomic(folder / LEDGER, journal.ledger)


def small_files(source: Copied, journal: Journal) -> dict[str, bytes]:
    """Return path -> content of metadata, row table and status, as Zarr keeps them.

    Raises:
        StoreDamagedError: the row table is not what was written.
    """
    table = table_files(source.table(), journal.chunk(TABLE_COLUMNS[0])[0])
    for name, content in table.items():
        if zlib.crc32(content) != journal.state().files[name]:
            raise StoreDamagedError(
                f"{source.path}: {name} of the row table is not what was written. "
                f"Mend it with: featurecache verify {source.path} --repair"
            )
    return {**journal.metadata, **table, **status_files(list(source.status()), journal.chunk("status")[0])}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what stands there afterwards is durable under its own name, or gone."""
    temporary = temporary_name(path)
    try:
        remove_leftovers(path)
        yield temporary
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # HDF5 reports some failed writes as RuntimeError
        _remove(temporary)
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}. Nothing was lost, and nothing is left of "
            "it: make room or restore access, then run the same command again."
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def copy_notes(source: Path, target: Path) -> None:
    """Copy provenance and scores into the folder `target`."""
    for name in NOTES:
        if isinstance(source, Path) and (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).exists():
            target.mkdir(exist_ok=True)
            (target / name).write_bytes((source / name).read_bytes())
