"""Making a damaged store what it was: from its second copy, the data set and the backbone, proven by the ledger.

Nothing is taken apart first. A chunk is computed again under a temporary name and gets its own only when its checksum is
the recorded one, so that a repair that is killed at any moment leaves the store as damaged as it was, or less.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from featurecache.features import ArraySpec
from featurecache.files import READABLE, sync_folder, write_atomic
from featurecache.stores import _ledger
from featurecache.stores._chunks import write_all
from featurecache.stores._constants import CLASSES, Cut
from featurecache.stores._creation import LEDGER, settle, unstage
from featurecache.stores._explaining import explained
from featurecache.stores._kept import Kept, kept_rows
from featurecache.stores._layout import TABLE_COLUMNS, status_files, table_files
from featurecache.stores._locking import acquire
from featurecache.stores._second_copy import COPY, copy_in, encoded, remove_copy
from featurecache.stores._verifying import Damage, Examined, begun_pieces, examine, extent_of_chunk, status_of

if TYPE_CHECKING:
    from featurecache.datasets import RowTable


class Material(Protocol):
    """What a store was made of: asked only for what is damaged."""

    def table(self) -> RowTable:
        """Return the row table of the data set."""

    def classes(self, classes: range) -> Mapping[str, npt.NDArray[Any]]:
        """Return the arrays of the classes for some of them."""

    def rows(
        self, rows: range, lacking: Mapping[ArraySpec, tuple[int, ...]], skipped: Mapping[int, str]
    ) -> Iterator[tuple[range, Mapping[str, npt.NDArray[Any]]]]:
        """Yield (rows, array -> (B, V, ...) in storage dtype of the views in `lacking`) in order, all of `rows`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlike:
    """A thing that was made again and is not what is recorded."""

    file: str
    what: str


Makers = Callable[[Kept], Sequence[Material]]
"""What a damaged store still knows of its rows -> what makes parts of it again, in every way in which that may have been."""


def mend(path: Path, material: Material | Makers, *, accept: bool) -> list[Unlike]:
    """Mend a Zarr store as far as it can be; return what came out otherwise than it is recorded, and was left as it is.

    `accept` takes chunks that come out otherwise all the same, and records them so.

    Raises:
        StoreBusyError: it is being written.
    """
    with explained(f"write to {path}"):
        lock = acquire(path)
    finished = False
    try:
        with explained(f"write to {path}"):
            found = examine(path)
            finished = found.finished
            restored(path, found, None, accept=accept)  # what needs neither images nor backbone is mended without them
            return restored(path, found, material, accept=accept)
    finally:
        lock.release(for_good=finished)


def restored(path: Path, found: Examined, material: Material | Makers | None, *, accept: bool) -> list[Unlike]:
    """Mend the folder of a store, whose lock the caller holds; the ledger comes last."""
    header, state = found.header, found.state
    if header is None or state is None:
        return []
    unstage(path, list(begun_pieces(path, header, state)))  # of an extension or a deletion that was cut off
    for leftover in path.rglob(".*.tmp"):
        leftover.unlink()
    for name, content in found.metadata.items():
        _replace(path / name, content)
    if found.finished:
        for name, content in status_files(
            status_of(state, header.rows), extent_of_chunk(found.metadata, "status")
        ).items():
            _replace(path / name, content)
    _filling(path, found)
    if material is None:
        _journal(path, found, [])
        return []
    materials = material(kept_rows(path, found)) if callable(material) else [material]
    table = list(_table(path, found, materials[0]))
    unlike = [*table, *_classes(path, found, materials[0])]
    # rows of which nobody knows which samples they are must not be taken for others
    accepted, others = _chunks(path, found, materials, accept=accept and not table)
    _journal(path, found, accepted)
    return unlike + others


def _replace(target: Path, content: bytes) -> None:
    """Write a file and the folders above it, unless it is that already."""
    if not (target.exists() and target.read_bytes() == content):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, content)


def _journal(path: Path, found: Examined, accepted: Sequence[_ledger.Record]) -> None:
    """Put ledger and second copy in their places, with the checksums of chunks that were accepted."""
    assert found.state is not None
    assert found.header is not None
    ledger = found.ledger
    if found.finished:
        for record in accepted:
            found.state.apply(record)
        ledger = b"".join(_ledger.encode(record) for record in found.state.records(found.header.rows))
    else:
        ledger += b"".join(_ledger.encode(record) for record in accepted)
    _put_ledger(path, ledger)
    copy = copy_in(path)
    if copy is None or (found.finished and copy.ledger != ledger) or any(d.file == COPY for d in found.damages):
        write_atomic(path / COPY, encoded(found.metadata, ledger))
    settle(path)


def _put_ledger(path: Path, ledger: bytes) -> None:
    """Replace the ledger, unless it is this one; one of ledger and copy is whole at every moment."""
    target, copy = path / LEDGER, copy_in(path)
    there = target.read_bytes() if target.exists() else b""
    if there == ledger:
        return
    if copy is not None and not ledger.startswith(copy.ledger):
        if not there.startswith(copy.ledger):
            write_atomic(target, copy.ledger)
        remove_copy(path)
    write_atomic(target, ledger)


def _table(path: Path, found: Examined, material: Material) -> Iterator[Unlike]:
    assert found.state is not None
    names = [damage.file for damage in found.damages if damage.way == "data"]
    chunk = extent_of_chunk(found.metadata, TABLE_COLUMNS[0])
    files = table_files(material.table(), chunk) if names else {}
    for name in names:
        if name in files and zlib.crc32(files[name]) == found.state.files[name]:
            _replace(path / name, files[name])
        else:
            yield Unlike(file=name, what="the data set is no longer the one that this store was made of")


def _classes(path: Path, found: Examined, material: Material) -> Iterator[Unlike]:
    assert found.header is not None
    assert found.state is not None
    wanted = {damage.file for damage in found.damages if damage.way == "classes"}
    for spec in found.header.constants if wanted else ():
        cut = Cut(spec, extent_of_chunk(found.metadata, spec.name, CLASSES))
        for name, classes in cut.pieces():
            if name not in wanted:
                continue
            content = cut.encoded(material.classes(classes)[spec.name])
            if zlib.crc32(content) == found.state.files[name]:
                _replace(path / name, content)
            else:
                yield Unlike(file=name, what="the text side no longer gives the same bits")


def _filling(path: Path, found: Examined) -> None:
    """Let chunks whose rows are sound have their size, and zeros behind their rows."""
    assert found.header is not None
    assert found.state is not None
    for damage in found.damages:
        if damage.way == "journal" and damage.file.startswith(f"{damage.array}/c/") and damage.array != "status":
            spec = found.header.array(damage.array)
            key = damage.file.removeprefix(f"{spec.name}/")
            count = found.state.chunks[spec.name][key][0]
            size = extent_of_chunk(found.metadata, spec.name) * spec.row_bytes
            content = (path / damage.file).read_bytes()[: count * spec.row_bytes]
            write_atomic(path / damage.file, content.ljust(size, b"\0"))


def _chunks(
    path: Path, found: Examined, materials: Sequence[Material], *, accept: bool
) -> tuple[list[_ledger.Record], list[Unlike]]:
    """Compute damaged chunks again; return (ledger records of those that differ and are accepted, those that are not)."""
    records: list[_ledger.Record] = []
    unlike: list[Unlike] = []
    for chunks in _groups([_Chunk.of(path, found, d) for d in found.damages if d.way == "rows"]):
        try:
            for chunk in _made(chunks, found, materials):
                if not accept:
                    unlike.append(Unlike(file=f"{chunk.spec.name}/{chunk.key}", what=chunk.told()))
                    continue
                chunk.put()
                known = {chunk.spec.name: {chunk.key: [len(chunk.rows), chunk.crc]}}
                span = [chunk.rows.start, chunk.rows.stop]
                records.append({"kind": "commit", "rows": span, "chunks": known, "skipped": {}})
        finally:
            for chunk in chunks:
                chunk.close()
    return records, unlike


def _made(chunks: list[_Chunk], found: Examined, materials: Sequence[Material]) -> list[_Chunk]:
    """Compute chunks whose rows overlap, and put those in their places that come out as recorded; return the others."""
    left = list(chunks)
    for material in materials:
        _compute(left, found, material)
        for chunk in left:
            if chunk.crc == chunk.expected:
                chunk.put()
        left = [chunk for chunk in left if chunk.crc != chunk.expected]
        if not left:
            break
    return left


def _compute(chunks: Sequence[_Chunk], found: Examined, material: Material) -> None:
    """Compute chunks whose rows overlap under their temporary names."""
    assert found.state is not None
    lacking = {spec: tuple(sorted({c.view for c in chunks if c.spec == spec})) for spec in {c.spec for c in chunks}}
    for chunk in chunks:
        chunk.begin()
    for batch, arrays in material.rows(_span(chunks), lacking, found.state.skipped):
        gone = [row - batch.start for row in found.state.deleted if row in batch]
        for values in arrays.values():
            values[gone] = 0
        for chunk in chunks:
            chunk.take(batch, arrays[chunk.spec.name][:, lacking[chunk.spec].index(chunk.view)])


def _groups(chunks: list[_Chunk]) -> Iterator[list[_Chunk]]:
    """Yield chunks whose rows overlap together, so that an image is decoded once."""
    group: list[_Chunk] = []
    for chunk in sorted(chunks, key=lambda chunk: (chunk.rows.start, chunk.rows.stop)):
        if group and chunk.rows.start >= max(other.rows.stop for other in group):
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


def _span(group: Sequence[_Chunk]) -> range:
    return range(group[0].rows.start, max(chunk.rows.stop for chunk in group))


class _Chunk:
    """One chunk that is made again beside the damaged one."""

    def __init__(self, target: Path, spec: ArraySpec, key: str, rows: range, view: int) -> None:
        self.target, self.spec, self.key, self.rows, self.view = target, spec, key, rows, view
        self.expected, self.size, self.crc = 0, 0, 0
        self._temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        self._descriptor, self._written = -1, 0

    @classmethod
    def of(cls, path: Path, found: Examined, damage: Damage) -> _Chunk:
        """Return the chunk that a damage names."""
        assert found.header is not None
        assert found.state is not None
        assert damage.rows is not None
        spec = found.header.array(damage.array)
        chunk = cls(path / damage.file, spec, damage.file.removeprefix(f"{spec.name}/"), damage.rows, damage.view)
        chunk.expected = found.state.chunks[spec.name][chunk.key][1]
        chunk.size = extent_of_chunk(found.metadata, spec.name) * spec.row_bytes
        return chunk

    def begin(self) -> None:
        """Begin anew, with no rows."""
        if self._descriptor < 0:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, READABLE)
        self._written, self.crc = 0, 0

    def take(self, batch: range, values: npt.NDArray[Any]) -> None:
        """Take what is of this chunk from the values (B, ...) of a batch; batches come in order."""
        start, stop = max(batch.start, self.rows.start), min(batch.stop, self.rows.stop)
        if start < stop:
            content = np.ascontiguousarray(values[start - batch.start : stop - batch.start]).tobytes()
            write_all(self._descriptor, content, self._written)
            self._written, self.crc = self._written + len(content), zlib.crc32(content, self.crc)

    def put(self) -> None:
        """Give the chunk its name, whole and durable."""
        os.ftruncate(self._descriptor, self.size)
        os.fsync(self._descriptor)
        os.replace(self._temporary, self.target)
        sync_folder(self.target.parent)

    def told(self) -> str:
        """Return in words how far what was computed is from what is stored."""
        if not self.target.exists():
            return "computed again it is not what is recorded; there is nothing left to compare it with"
        ours, theirs = (self._numbers(path) for path in (self._temporary, self.target))
        if len(ours) != len(theirs):
            return "computed again it is not what is recorded; the stored one is cut off"
        sizes = np.maximum(np.linalg.norm(theirs, axis=1), np.finfo(np.float64).tiny)
        apart = np.linalg.norm(ours - theirs, axis=1) / sizes
        return (
            f"computed again it is not what is recorded: {int((apart > 0).sum())} of {len(apart)} rows differ, half of all "
            f"by at most {np.median(apart):.1e} of their size"
        )

    def _numbers(self, path: Path) -> npt.NDArray[np.float64]:
        content = path.read_bytes()[: len(self.rows) * self.spec.row_bytes]
        values = np.frombuffer(
            content[: len(content) // self.spec.row_bytes * self.spec.row_bytes], self.spec.storage_dtype
        )
        if self.spec.dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return np.nan_to_num(
            values.reshape(-1, self.spec.row_bytes // self.spec.storage_dtype.itemsize).astype(np.float64)
        )

    def close(self) -> None:
        """Leave nothing behind."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._temporary.unlink(missing_ok=True)
