"""The ledger: what is committed, one checksummed line per commit, appended and fsynced.

A line is the CRC-32 of its JSON in eight hexadecimal digits, a space, the JSON. A torn or damaged line ends the ledger:
it and everything after it never happened. Readers trust the ledger and never a fill value.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from featurecache.errors import StoreDamagedError
from featurecache.files import write_atomic
from featurecache.stores._chunks import view_of

Record = dict[str, Any]


def encode(record: Record) -> bytes:
    """Return the line of one record."""
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> Record | None:
    if not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    text = line[9:-1]
    if line[:8] != b"%08x" % zlib.crc32(text):
        return None
    record: Record = json.loads(text)
    return record


def read_records(path: Path) -> tuple[list[Record], int]:
    """Return the good records of a ledger and the number of bytes they fill; the rest is not to be trusted.

    Raises:
        StoreDamagedError: not even the first record can be read.
    """
    with path.open("rb") as file:
        records, size = good_records(file)
    if not records:
        raise StoreDamagedError(
            f"{path} holds no readable record, so nothing in this store can be trusted. Mend it with: "
            f"featurecache verify {path.parent} --repair"
        )
    return records, size


def good_records(lines: Iterable[bytes]) -> tuple[list[Record], int]:
    """Return the records before the first line that is torn or damaged, and the number of bytes they fill."""
    records: list[Record] = []
    size = 0
    for line in lines:
        record = _decode(line)
        if record is None:
            break
        records.append(record)
        size += len(line)
    return records, size


def append(path: Path, record: Record) -> None:
    """Add one record durably; where the disk takes but a part of it, that part is taken back."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(encode(record))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        cut(path, size)
        raise


def cut(path: Path, size: int) -> None:
    """Drop what follows the good records, so that appending continues a readable ledger."""
    if path.stat().st_size > size:
        with open(path, "r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())


def replace(path: Path, records: Iterable[Record]) -> None:
    """Put a new ledger in the place of the old one, whole or not at all."""
    write_atomic(path, b"".join(encode(record) for record in records))


@dataclass(slots=True)
class Committed:
    """The state that a ledger describes."""

    files: Mapping[str, int]
    """Path of each file of metadata, of the row table and of the classes -> its CRC-32."""
    spans: dict[tuple[str, int], list[tuple[int, int]]] = field(default_factory=dict)
    """Array and view -> committed row spans, ascending and disjoint."""
    chunks: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """Array -> chunk key -> (rows committed in the chunk, CRC-32 of their bytes)."""
    skipped: dict[int, str] = field(default_factory=dict)
    """Row -> why it holds no features."""
    deleted: set[int] = field(default_factory=set)
    """Rows that were taken out for good; their bytes are zero."""
    finished: bool = False

    @classmethod
    def replay(cls, records: list[Record]) -> Committed:
        """Return the state after all `records`; the first one is that of the creation."""
        state = cls(files=records[0]["files"])
        for record in records[1:]:
            state.apply(record)
        return state

    def apply(self, record: Record) -> None:
        """Take one more record into account."""
        if record["kind"] == "finished":
            self.finished = True
            return
        if record["kind"] == "extended":
            self.finished = False
            self.files = {**self.files, **_file_sums(record)}
            return
        if record["kind"] == "deleted":
            self.finished = False
            self.deleted.update(record["rows"])
            for array, chunks in record["chunks"].items():
                self.chunks[array].update({key: (rows, crc) for key, (rows, crc) in chunks.items()})
            return
        start, stop = record["rows"]
        self.deleted.update(record.get("deleted", ()))
        for array, chunks in record["chunks"].items():
            for view in {view_of(key) for key in chunks}:  # a commit writes every view it speaks of, in all its rows
                self.spans[array, view] = _joined([*self.spans.get((array, view), []), (start, stop)])
            known = self.chunks.setdefault(array, {})
            known.update({key: (rows, crc) for key, (rows, crc) in chunks.items()})
        self.skipped.update({int(row): reason for row, reason in record["skipped"].items()})

    def records(self, rows: int) -> list[Record]:
        """Return the ledger of a finished store: a function of what is committed, not of how it came about."""
        chunks = {a: {k: list(v) for k, v in sorted(keys.items())} for a, keys in sorted(self.chunks.items())}
        skipped = {str(row): reason for row, reason in sorted(self.skipped.items())}
        everything: Record = {"kind": "commit", "rows": [0, rows], "chunks": chunks, "skipped": skipped}
        if self.deleted:
            everything["deleted"] = sorted(self.deleted)
        return [{"kind": "created", "files": dict(self.files)}, everything, {"kind": "finished"}]

    def missing(self, arrays: Iterable[str], views: Iterable[int], rows: int) -> list[range]:
        """Return the rows of `range(rows)` that are absent from any of `arrays` in any of `views`, ascending and disjoint."""
        gaps = [gap for part in product(arrays, views) for gap in _gaps(self.spans.get(part, []), rows)]
        return [range(a, b) for a, b in _joined(gaps)]


def chunk_files(record: Record) -> list[str]:
    """Return the paths of the chunks that a record speaks of."""
    return [f"{array}/{key}" for array, chunks in record["chunks"].items() for key in chunks]


def as_of(records: Sequence[Record], file: str, crc: int) -> list[Record] | None:
    """Return the longest beginning of a ledger after which `file` has this CRC-32, or None where it never had."""
    found, known = None, None
    for count, record in enumerate(records, 1):
        known = _file_sums(record).get(file, known)
        if known == crc:
            found = count
    return None if found is None else list(records[:found])


def _file_sums(record: Record) -> Mapping[str, int]:
    if record["kind"] == "created":
        sums: Mapping[str, int] = record["files"]
        return sums
    texts = {name: zlib.crc32(text.encode()) for name, text in record.get("files", {}).items()}
    return {**texts, **record.get("sums", {})}


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _gaps(spans: list[tuple[int, int]], rows: int) -> list[tuple[int, int]]:
    edges = [0, *(edge for span in spans for edge in span), rows]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
