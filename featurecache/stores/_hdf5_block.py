"""The block in front of an HDF5 file, which HDF5 leaves to its user: checksums of the file, and a second copy of its journal.

The first line says where the arrays of rows lie, and the CRC-32 of everything else behind the block; what those arrays hold
is in the ledger, chunk by chunk. The lines of the second copy follow, then zeros. So every bit of the file is in one checksum,
and the file can be read even where HDF5 cannot make sense of it any more.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featurecache.stores import _ledger
from featurecache.stores._second_copy import SecondCopy, decoded, encoded

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SMALLEST = 512
"""Where HDF5 begins behind a block: at this byte, or at twice as many, and so on."""
PIECE = 2**23


@dataclass(frozen=True, slots=True)
class Block:
    """What stands in front of a file; every line is as it was written."""

    size: int
    """Bytes of the block: where HDF5 begins."""
    file_bytes: int
    """Bytes of the file, block and all."""
    places: Mapping[str, tuple[int, int]]
    """Array of rows -> (first byte, number of bytes) in the file."""
    rest: int
    """CRC-32 of everything behind the block that is in none of these arrays."""
    copy: SecondCopy

    def content(self) -> bytes:
        """Return the block as it is written."""
        places = {name: list(place) for name, place in self.places.items()}
        first = {"kind": "file", "bytes": self.file_bytes, "places": places, "rest": self.rest}
        return (_ledger.encode(first) + encoded(self.copy.metadata, self.copy.ledger)).ljust(self.size, b"\0")


def room_for(copy: SecondCopy) -> int:
    """Return the bytes of the block of a file: a power of two, as HDF5 demands, and a function of the content alone."""
    places = 512 + sum(len(name) + 64 for name in copy.metadata)
    needed, size = len(encoded(copy.metadata, copy.ledger)) + places, SMALLEST
    while size < needed:
        size *= 2
    return size


def write_block(path: Path, copy: SecondCopy, arrays: list[str]) -> None:
    """Write the block of a file that HDF5 has just closed, durably."""
    import h5py

    with h5py.File(path, "r") as file:
        size = file.userblock_size
        places = {name: (file[name].id.get_offset(), file[name].id.get_storage_size()) for name in arrays}
    # an array without rows has no place
    there = {name: place for name, place in places.items() if place[0] is not None}
    block = Block(size, path.stat().st_size, there, rest_of(path, size, there), copy)
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.pwrite(descriptor, block.content(), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rest_of(
    path: Path, start: int, places: Mapping[str, tuple[int, int]], seen: Callable[[int], None] = lambda count: None
) -> int:
    """Return the CRC-32 of a file from `start` on, without what lies in `places`."""
    crc, end = 0, path.stat().st_size
    with open(path, "rb") as file:
        for first, stop in _between(start, end, places):
            file.seek(first)
            while first < stop:
                piece = file.read(min(PIECE, stop - first))
                if not piece:
                    break
                crc, first = zlib.crc32(piece, crc), first + len(piece)
                seen(len(piece))
    return crc


def _between(start: int, end: int, places: Mapping[str, tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for first, count in sorted(places.values()):
        yield start, min(first, end)
        start = first + count
    yield start, end


def read_block(path: Path) -> tuple[Block | None, bytes]:
    """Return the block of a file (None where there is none that is as it was written) and the bytes before HDF5 begins."""
    with open(path, "rb") as file:
        lines = list(_good_lines(file))
        copy = decoded(b"".join(lines[1:]))
        kinds = [json.loads(line[9:])["kind"] for line in (*lines[:1], *lines[-1:])]
        if copy is None or kinds != ["file", "finished"]:
            file.seek(0)
            return None, file.read(_start(file))
        found, size = json.loads(lines[0][9:]), room_for(copy)
        file.seek(0)
        content = file.read(size)
    places = {name: (offset, count) for name, (offset, count) in found["places"].items()}
    return Block(size, found["bytes"], places, found["rest"], copy), content


def _good_lines(file: BinaryIO) -> Iterator[bytes]:
    for line in file:
        if not _ledger.good_records([line])[0]:
            return
        yield line


def _start(file: BinaryIO) -> int:
    """Return where HDF5 begins; leaves the file at its first byte."""
    offset, end = 0, file.seek(0, os.SEEK_END)
    while offset < end:
        file.seek(offset)
        if file.read(len(SIGNATURE)) == SIGNATURE:
            break
        offset = max(SMALLEST, 2 * offset)
    file.seek(0)
    return min(offset, end)


def mapped_bytes(path: Path) -> mmap.mmap | bytes:
    """Return the bytes of a file without reading them."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
