"""The writer of a store, or of a share of its rows: rows in, commits out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from featurecache.errors import StoreError
from featurecache.features import Header
from featurecache.files import write_atomic
from featurecache.stores import _ledger
from featurecache.stores._chunks import ChunkWriter, check_unfilled
from featurecache.stores._creation import LEDGER
from featurecache.stores._explaining import explained
from featurecache.stores._locking import Lock
from featurecache.stores._second_copy import keep_copy, remove_copy
from featurecache.stores._shards import ledger_of, within

Parts = Mapping[str, tuple[int, ...]]
"""Array -> views of it that are written."""


class Writer:
    """Appends rows to the chunk files of a store and commits them to its ledger."""

    def __init__(
        self, path: Path, lock: Lock, header: Header, chunk_rows: Mapping[str, int], state: _ledger.Committed
    ) -> None:
        self.path, self.lock, self.state = path, lock, state
        self._ledger = path / (LEDGER if lock.rows is None else ledger_of(lock.rows))
        for spec in header.arrays:
            known = state.chunks.get(spec.name, {})
            check_unfilled(path, spec, chunk_rows[spec.name], within(known, chunk_rows[spec.name], lock.rows))
        self._writers = {
            spec.name: ChunkWriter(path, spec, chunk_rows[spec.name], state.chunks.get(spec.name, {}))
            for spec in header.arrays
        }
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="fsync")
        self._spans: list[tuple[int, int]] = []
        self._parts: Parts = {}
        self._skipped: dict[int, str] = {}
        self._broken = False

    @contextmanager
    def _sound(self, act: str) -> Iterator[None]:
        """Let a step that failed be the last one: what it left in memory may be more than what is on disk."""
        if self._broken:
            raise StoreError(
                f"an earlier write to {self.path} failed, so it must be opened again before it is written."
            )
        self._broken = True
        with explained(f"{act} {self.path}"):
            yield
        self._broken = False

    def begin(self, rows: range) -> None:
        """Note that `rows` are being computed, so that a later writer can say what a crash cost."""
        self.lock.describe(rows.stop)

    def write(
        self, rows: range, arrays: Mapping[str, npt.NDArray[Any]], skipped: Mapping[int, str], parts: Parts
    ) -> None:
        """Write rows that follow those written before, or start a new span (which commits the old one).

        Raises:
            StoreError: the disk is full or refuses; what was committed stays, the same command goes on from there.
        """
        if self._spans and (self._spans[-1][1] != rows.start or self._parts != parts):
            self.commit()
        with self._sound("write to"):
            for name, values in arrays.items():
                if len(values) != len(rows):
                    raise StoreError(f"{name} holds {len(values)} rows, but {len(rows)} were announced")
                if values.shape[1] != len(parts[name]):
                    raise StoreError(f"{name} holds {values.shape[1]} views, but {len(parts[name])} were announced")
                self._writers[name].write(rows.start, values, self._pool, parts[name])
        start = self._spans[0][0] if self._spans else rows.start
        self._spans, self._parts = [(start, rows.stop)], parts
        self._skipped.update(skipped)

    @property
    def uncommitted(self) -> int:
        """Rows written since the last commit."""
        return sum(stop - start for start, stop in self._spans)

    def commit(self) -> None:
        """Make every row written so far durable, then true."""
        if not self._spans:
            return
        writers = [self._writers[name] for name in self._parts]
        with self._sound("commit to"):
            for waiting in [future for writer in writers for future in writer.settle(self._pool)]:
                waiting.result()
            chunks = {writer.spec.name: writer.taken() for writer in writers}
            skipped = {str(row): reason for row, reason in self._skipped.items()}
            record = {"kind": "commit", "rows": list(self._spans[0]), "chunks": chunks, "skipped": skipped}
            _ledger.append(self._ledger, record)
        self.state.apply(record)
        self._spans, self._skipped = [], {}

    def seal(self, rows: int, status_files: Iterable[tuple[str, bytes]]) -> None:
        """Write the status of every row and the canonical ledger; nothing may be missing."""
        with self._sound("finish"):
            for name, content in status_files:
                target = self.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(target, content)
            remove_copy(self.path)
            _ledger.replace(self.path / LEDGER, self.state.records(rows))
            keep_copy(self.path, self.path / LEDGER)
        self.state.finished = True

    def let_go(self) -> None:
        """Close the files, but keep the lock."""
        self._pool.shutdown(wait=True)
        for writer in self._writers.values():
            writer.close()

    def close(self) -> None:
        """Let go of files and lock. Rows that were not committed stay unreal."""
        self.let_go()
        self.lock.release(for_good=self.state.finished)
