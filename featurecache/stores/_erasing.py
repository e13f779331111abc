"""Rows taken out of a store for good: their bytes are zero in every array and view, and no reader yields them.

The chunks without those rows are written under temporary names. One ledger line, with their checksums, makes the rows
unreal; then the files get their names. Whoever writes next finishes that where it was cut off.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

from featurecache.errors import StoreDamagedError
from featurecache.features import Header
from featurecache.files import sync_folder
from featurecache.stores import _ledger
from featurecache.stores._creation import LEDGER, staged, unstage, write_durably


def erase_rows(
    path: Path, state: _ledger.Committed, header: Header, chunk_rows: Mapping[str, int], rows: Collection[int]
) -> None:
    """Make rows of the store at `path` deleted ones; the caller holds the lock and opens it again.

    Raises:
        StoreDamagedError: a chunk does not hold what was committed; then nothing is changed.
    """
    chunks: dict[str, dict[str, list[int]]] = {}
    for spec in header.arrays:
        size = chunk_rows[spec.name]
        for key, (count, crc) in state.chunks.get(spec.name, {}).items():
            first = int(key.split("/")[1]) * size
            inside = [row - first for row in rows if first <= row < first + count]
            if inside:
                content = bytearray((path / spec.name / key).read_bytes())
                if zlib.crc32(memoryview(content)[: count * spec.row_bytes]) != crc:
                    raise StoreDamagedError(
                        f"{path / spec.name / key} does not hold the rows that were committed to it, so nothing was "
                        "deleted. Restore it first."
                    )
                for row in inside:
                    content[row * spec.row_bytes : (row + 1) * spec.row_bytes] = bytes(spec.row_bytes)
                write_durably(staged(path, f"{spec.name}/{key}"), bytes(content))
                new = zlib.crc32(memoryview(content)[: count * spec.row_bytes])
                chunks.setdefault(spec.name, {})[key] = [count, new]
    sync_folder(path)
    record = {"kind": "deleted", "rows": sorted(rows), "chunks": chunks}
    _ledger.append(path / LEDGER, record)
    unstage(path, _ledger.chunk_files(record))
