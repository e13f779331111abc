"""The one writer of a store: rows in, commits out, a lock that says who holds it."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from featurecache.errors import StoreBusyError, StoreError
from featurecache.features import Header
from featurecache.files import sync_folder, write_atomic
from featurecache.stores import _ledger
from featurecache.stores._chunks import ChunkWriter, check_unfilled
from featurecache.stores._creation import LEDGER
from featurecache.stores._explaining import explained
from featurecache.stores._second_copy import keep_copy, remove_copy

LOCK = "writer.lock"

Parts = Mapping[str, tuple[int, ...]]
"""Array -> views of it that are written."""


class Writer:
    """Appends rows to the chunk files of a store and commits them to its ledger."""

    def __init__(
        self, path: Path, lock: Lock, header: Header, chunk_rows: Mapping[str, int], state: _ledger.Committed
    ) -> None:
        self.path, self.lock, self.state = path, lock, state
        for spec in header.arrays:
            check_unfilled(path, spec, chunk_rows[spec.name], state.chunks.get(spec.name, {}))
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
            _ledger.append(self.path / LEDGER, record)
        self.state.apply(record)
        self._spans, self._skipped = [], {}

    def seal(self, rows: int, status_files: Mapping[str, bytes]) -> None:
        """Write the status of every row and the canonical ledger; nothing may be missing."""
        with self._sound("finish"):
            for name, content in status_files.items():
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


@dataclass(frozen=True, slots=True)
class Lock:
    """The right to write a store; the kernel takes it back when the process ends, however it ends."""

    path: Path
    descriptor: int
    interrupted_at: int
    """Row up to which an earlier writer, which never finished, had begun to compute."""
    since: float = field(default_factory=time.time)

    def describe(self, position: int) -> None:
        """Write who holds the lock since when, and the row up to which it computes; survives a kill, costs no fsync."""
        line = f"{os.getpid()} {socket.gethostname()} {int(self.since)} {position}\n"
        with explained(f"write to {self.path.parent}"):
            os.pwrite(self.descriptor, line.encode().ljust(512), 0)

    def moved_to(self, position: int) -> Lock:
        """Return the lock as one whose earlier writer had begun to compute up to `position`; noted on disk too."""
        self.describe(position)
        return replace(self, interrupted_at=position)

    def release(self, *, for_good: bool) -> None:
        """Let the next writer in; `for_good` removes the file too, for a store that is finished."""
        if for_good:
            self.path.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        os.close(self.descriptor)


def acquire(path: Path) -> Lock:
    """Lock a store for writing.

    Raises:
        StoreBusyError: another process writes it; says which.
        StoreError: the folder cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        reason = error.strerror
        raise StoreError(f"cannot write in {path.parent}: {reason}. Give an --out that can be written.") from error
    holder = _HOLDER.match(os.read(descriptor, 512).decode(errors="replace"))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreBusyError(f"{path.parent} is being written by {_named(holder)}. Wait for it, or stop it.") from None
    if not (path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())):
        os.close(descriptor)  # the writer before us finished and removed its lock between our open and our flock
        return acquire(path)
    lock = Lock(path, descriptor, int(holder["position"]) if holder else 0)
    try:
        lock.describe(lock.interrupted_at)
    except BaseException:
        os.close(descriptor)
        raise
    return lock


_HOLDER = re.compile(r"(?P<process>\d+) (?P<host>\S+) (?P<since>\d+) (?P<position>\d+)\n")


def _named(holder: re.Match[str] | None) -> str:
    if holder is None:
        return "another process"
    seconds = max(0, int(time.time()) - int(holder["since"]))
    return f"process {holder['process']} on {holder['host']}, for {seconds} s"
