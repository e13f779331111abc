"""Chunk files: an uncompressed Zarr v3 chunk is plain C-order bytes, rows first, so rows are appended in place.

The bytes of committed rows are never touched again; a chunk grows by writing behind them. The checksum of a chunk covers
the rows committed so far and is carried on as it grows, so each byte is summed once.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import gcd, lcm
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import StoreDamagedError, StoreError
from featurecache.features import ArraySpec
from featurecache.files import READABLE, sync_folder

TARGET_BYTES = 8 * 2**20
"""Many small objects cost writes, large ones cost memory: 4 to 16 MB measured best."""
LONGEST_CHUNK = 4096
PAGE = 16384
"""Chunks that fill whole pages (of 4 or 16 KiB) can be mapped one behind the other as one array."""


def chunk_rows(spec: ArraySpec, rows: int, multiple: int) -> int:
    """Return the rows of a chunk: near `TARGET_BYTES`, at least about 8 chunks, a multiple of `multiple`, whole pages.

    It is `multiple` times a power of two, so that every chunk of a store lies in whole chunks of any larger one: writers
    divide the rows between chunks of all arrays at once.
    """
    wanted = min(LONGEST_CHUNK, max(TARGET_BYTES // spec.row_bytes, 16), max(-(-rows // 8), 1))
    step = lcm(multiple, PAGE // gcd(PAGE, spec.row_bytes))
    if step > max(LONGEST_CHUNK, multiple) or step * spec.row_bytes > 2 * TARGET_BYTES:
        step = multiple
    return step << (max(wanted // step, 1).bit_length() - 1)


def chunk_key(index: int, view: int, tail: int) -> str:
    """Return a chunk's key below its array, e.g. `c/3/0/0`; `tail` is the number of axes behind rows and views."""
    return "/".join(["c", str(index), str(view), *("0",) * tail])


def view_of(key: str) -> int:
    """Return the view that a chunk's key speaks of."""
    return int(key.split("/")[2])


class ChunkWriter:
    """Writes consecutive rows of one array into its chunk files; durable after `settle`."""

    def __init__(
        self, folder: Path, spec: ArraySpec, rows_per_chunk: int, known: Mapping[str, tuple[int, int]]
    ) -> None:
        self.folder, self.spec, self.rows_per_chunk = folder, spec, rows_per_chunk
        self.state = dict(known)
        """Chunk key -> (rows written, CRC-32 of their bytes)."""
        self._touched: set[str] = set()
        self._open: dict[str, int] = {}
        self._closing: list[Future[None]] = []
        self._unsynced: set[Path] = set()

    def write(self, start: int, values: npt.NDArray[Any], pool: ThreadPoolExecutor, views: Sequence[int]) -> None:
        """Write `values` (B, V, ...) as rows `start` and following of these views."""
        for offset, count, index, inside in self._pieces(start, len(values)):
            for place, view in enumerate(views):
                key = chunk_key(index, view, len(self.spec.tail))
                self._append(key, inside, as_bytes(values[offset : offset + count, place]), count)
                if inside + count == self.rows_per_chunk:
                    self._closing.append(pool.submit(_sync_and_close, self._open.pop(key)))

    def _pieces(self, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        done = 0
        while done < count:
            index, inside = divmod(start + done, self.rows_per_chunk)
            piece = min(count - done, self.rows_per_chunk - inside)
            yield done, piece, index, inside
            done += piece

    def _append(self, key: str, inside: int, content: memoryview, count: int) -> None:
        rows, crc = self.state.get(key, (0, 0))
        if inside == 0:
            rows, crc = 0, 0
        if rows != inside:
            raise StoreError(f"{self.spec.name}/{key} holds {rows} rows, so row {inside} of the chunk cannot be next")
        descriptor = self._open.get(key)
        if descriptor is None:
            descriptor = self._open[key] = self._descriptor(key)
        write_all(descriptor, content, inside * self.spec.row_bytes)
        self.state[key] = (inside + count, zlib.crc32(content, crc))
        self._touched.add(key)

    def _descriptor(self, key: str) -> int:
        path = self.folder / self.spec.name / key
        path.parent.mkdir(parents=True, exist_ok=True)
        # every name between the array and the chunk may be new, or made by a writer that was killed before it synced them
        self._unsynced.update(p for p in path.parents if p.is_relative_to(self.folder / self.spec.name))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, READABLE)
        size = self.rows_per_chunk * self.spec.row_bytes
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, size)
        return descriptor

    def settle(self, pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Start making everything durable; the caller waits for the futures, then calls `taken`."""
        waiting = self._closing + [pool.submit(os.fsync, descriptor) for descriptor in self._open.values()]
        waiting += [pool.submit(sync_folder, folder) for folder in sorted(self._unsynced)]
        self._closing, self._unsynced = [], set()
        return waiting

    def taken(self) -> dict[str, list[int]]:
        """Return (rows, CRC-32) of the chunks written since the last call, for the ledger."""
        touched = {key: list(self.state[key]) for key in sorted(self._touched)}
        self._touched.clear()
        return touched

    def close(self) -> None:
        """Close the files of unfilled chunks."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def as_bytes(values: npt.NDArray[Any]) -> memoryview:
    """Return the bytes of an array in C order, of one that is in this order without a copy."""
    return np.ascontiguousarray(values).data.cast("B")


def write_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_unfilled(folder: Path, spec: ArraySpec, rows_per_chunk: int, known: Mapping[str, tuple[int, int]]) -> None:
    """Read the committed rows of every unfilled chunk again before a writer adds to them.

    Raises:
        StoreDamagedError: they are not the bytes that were committed.
    """
    for key, (rows, crc) in known.items():
        if rows == rows_per_chunk:
            continue
        path = folder / spec.name / key
        try:
            content = path.read_bytes()[: rows * spec.row_bytes]
        except FileNotFoundError:
            content = b""
        if zlib.crc32(content) != crc:
            raise StoreDamagedError(
                f"{path} does not hold the {rows} rows that were committed to it. "
                f"Mend it with: featurecache verify {folder} --repair"
            )
