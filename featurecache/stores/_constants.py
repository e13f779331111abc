"""Arrays of the classes: what the text side of a model says of their names, in files cut along the classes.

Some are of all classes alike, such as the projections into the space of image and text: one stands in the place of the
classes, and one file holds them. They are no rows: written whole when a store is made or extended, before the ledger line that makes them real. The ledger
has the checksum of every file, as of those of the row table, so that a reader never takes what is gone for zeros.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import StoreContentsError, StoreDamagedError, StoreError
from featurecache.features import OF_THE_MODEL, ArraySpec, Header
from featurecache.files import sync_folder
from featurecache.stores._chunks import TARGET_BYTES

ROOM = "text"
"""Group of the arrays of the classes."""
CLASSES = -3
"""Axis of the classes, before templates and width; of length one in an array that is of all classes alike."""

ClassValues = Callable[[range], Mapping[str, npt.NDArray[Any]]]
"""Numbers of some classes -> the arrays for these, in storage dtype; those of all classes alike are always whole."""


def is_shared(spec: ArraySpec) -> bool:
    """Return whether an array is of all classes alike (or there is but one class, which is the same)."""
    return spec.tail[CLASSES] == 1


def of_classes(spec: ArraySpec, whole: npt.NDArray[Any], classes: range) -> npt.NDArray[Any]:
    """Return what a whole array says of some classes, as `ClassValues` does."""
    return whole if is_shared(spec) else np.asarray(whole[at(classes)])


@dataclass(frozen=True, slots=True)
class Cut:
    """How an array of the classes is cut into files; the last one is filled up with zeros, as Zarr does."""

    spec: ArraySpec
    classes: int
    """Classes of a file."""

    @property
    def chunk(self) -> tuple[int, ...]:
        """Shape of what a file holds."""
        return (*self.spec.tail[:CLASSES], self.classes, *self.spec.tail[CLASSES + 1 :])

    @property
    def file_bytes(self) -> int:
        """Bytes of a file."""
        return int(np.prod(self.chunk, dtype=np.int64)) * self.spec.storage_dtype.itemsize

    def pieces(self) -> Iterator[tuple[str, range]]:
        """Yield (path below the store, classes in it) of every file."""
        count = self.spec.tail[CLASSES]
        for number, start in enumerate(range(0, count, self.classes)):
            place = [0] * len(self.spec.tail)
            place[CLASSES] = number
            name = "/".join([self.spec.name, "c", *map(str, place)])
            yield name, range(start, min(start + self.classes, count))

    def encoded(self, values: npt.NDArray[Any]) -> bytes:
        """Return the content of the file of these classes.

        Raises:
            StoreError: values of another shape or dtype than the header says.
        """
        expected = (*self.chunk[:CLASSES], *values.shape[CLASSES : CLASSES + 1], *self.chunk[CLASSES + 1 :])
        if values.shape != expected or values.dtype != self.spec.storage_dtype:
            raise StoreError(
                f"{self.spec.name} is {values.shape} of {values.dtype}, not {expected} of {self.spec.storage_dtype}"
            )
        whole = np.zeros(self.chunk, self.spec.storage_dtype)
        whole[at(range(values.shape[CLASSES]))] = values
        return whole.tobytes()

    def decoded(self, content: bytes, classes: range) -> npt.NDArray[Any]:
        """Return the values of the classes of one file."""
        whole = np.frombuffer(content, self.spec.storage_dtype).reshape(self.chunk)
        return np.asarray(whole[at(range(len(classes)))])


def at(classes: range) -> tuple[Any, ...]:
    """Return the index that takes these classes of an array of the classes."""
    return (..., slice(classes.start, classes.stop), slice(None), slice(None))


def cuts(header: Header) -> list[Cut]:
    """Return how the arrays of the classes are cut: all at the same classes, the largest into about `TARGET_BYTES`."""
    parted = [spec for spec in header.constants if not is_shared(spec)]
    count = parted[0].tail[CLASSES] if parted else 1
    largest = max((spec.row_bytes for spec in parted), default=1)
    classes = min(count, max(1, TARGET_BYTES * count // largest))
    return [Cut(spec, 1 if is_shared(spec) else classes) for spec in header.constants]


def write_constants(
    folder: Path, plan: Sequence[Cut], values: ClassValues | None, write: Callable[[Path, bytes], None]
) -> dict[str, int]:
    """Ask for the values of some classes after the other, and write them; return path -> CRC-32 of every file.

    Raises:
        StoreError: there are no values, or of another shape than the header says.
    """
    if plan and values is None:
        raise StoreError(f"a store of {', '.join(cut.spec.name for cut in plan)} cannot be made without their values")
    pieces = [list(cut.pieces()) for cut in plan]
    longest: list[tuple[str, range]] = max(pieces, key=len, default=[])
    sums: dict[str, int] = {}
    for number, (_, classes) in enumerate(longest):
        assert values is not None
        made = values(classes)
        for cut, files in zip(plan, pieces, strict=True):
            for name, _ in files[number : number + 1]:  # those of all classes alike have one
                content = cut.encoded(made[cut.spec.name])
                write(folder / name, content)
                sums[name] = zlib.crc32(content)
    return sums


def sync_constants(folder: Path) -> None:
    """Make the names of the files of the classes durable."""
    for place in chain([folder, folder / ROOM], (p for p in (folder / ROOM).rglob("*") if p.is_dir())):
        sync_folder(place)


def remove_unclaimed(folder: Path, claimed: Mapping[str, int]) -> None:
    """Remove the files of the classes that an extension wrote and did not live to name in the ledger."""
    room = folder / ROOM
    for path in [*sorted(room.rglob("*"), reverse=True), room]:
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.exists() and str(path.relative_to(folder)) not in claimed:
            path.unlink()


@dataclass(frozen=True, slots=True)
class Piece:
    """What one file of an array of the classes holds."""

    name: str
    classes: range
    content: bytes
    values: npt.NDArray[Any]
    """The same as numbers."""


def checked_pieces(
    store: Path, cut: Cut, sums: Mapping[str, int], read: Callable[[str, range], bytes]
) -> Iterator[Piece]:
    """Yield what every file of one array holds, compared with the checksums of the ledger.

    Raises:
        StoreDamagedError: it is not what was written.
    """
    for name, classes in cut.pieces():
        content = read(name, classes)
        if zlib.crc32(content) != sums[name]:
            raise StoreDamagedError(
                f"{store}: {cut.spec.name} of the classes {classes.start} to {classes.stop - 1} is not what was written. "
                f"Mend it with: featurecache verify {store} --repair"
            )
        yield Piece(name, classes, content, cut.decoded(content, classes))


def assembled(spec: ArraySpec, pieces: Iterator[Piece]) -> npt.NDArray[Any]:
    """Return the whole array in storage dtype."""
    whole = np.empty(spec.tail, spec.storage_dtype)
    for piece in pieces:
        whole[at(piece.classes)] = piece.values
    return whole


def constant_called(path: Path, header: Header, name: str) -> ArraySpec:
    """Return the spec of an array of the classes.

    Raises:
        StoreContentsError: there is none of that name; says which there are, or how they are made.
    """
    try:
        return header.constant(name)
    except KeyError:
        held = ", ".join(spec.name for spec in header.constants)
        way = "extract-features with --prompts and --extend adds what CLIP says of them."
        if held:
            own = " extract-features with --extend adds it, where it is a linear map." if name in OF_THE_MODEL else ""
            way = f"it holds {held}.{own}"
        raise StoreContentsError(f"{path} holds no array {name!r} of the classes; {way}") from None
