"""Who may write: one process the whole store, or several disjoint ranges of its rows, each with its pid, host and age.

The lock of a store is held alone by a writer of the whole, and shared by the writers of ranges, each of which holds the
lock of its range alone. The kernel takes a lock back when its process ends, however it ends. Some shared file systems
keep locks to one machine, so the file of a lock is a lease too: what a process of another machine has not given back
stays its own, until it was silent for `SILENT_SECONDS` and the next one asks to take it over.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from featurecache.errors import StoreBusyError, StoreError
from featurecache.files import READABLE, sync_folder
from featurecache.stores._explaining import explained

LOCK = "writer.lock"
SILENT_SECONDS = 300
"""A writer notes every batch in its lock, and commits every 30 s: one that was silent for so long is taken for dead."""
WAIT_SECONDS = 30
"""How long a writer of a range waits for one of the whole, which seals or extends the store, or begins it."""


@dataclass(frozen=True, slots=True)
class Lock:
    """The right to write a store, or `rows` of it."""

    path: Path
    descriptor: int
    interrupted_at: int
    """Row up to which an earlier writer, which never finished, had begun to compute."""
    rows: range | None = None
    """Rows that may be written; None: all."""
    shared: int | None = None
    """The store's own lock, held with the writers of other ranges."""
    since: float = field(default_factory=time.time)

    def describe(self, position: int, *, left: bool = False) -> None:
        """Write who holds the lock since when, and the row up to which it computes; survives a kill, costs no fsync."""
        with explained(f"write to {self.path.parent}"):
            _describe(self.descriptor, self.since, position, left)

    def moved_to(self, position: int) -> Lock:
        """Return the lock as one whose earlier writer had begun to compute up to `position`; noted on disk too."""
        self.describe(position)
        return replace(self, interrupted_at=position)

    def release(self, *, for_good: bool) -> None:
        """Let the next writer in; `for_good` removes the file too, for a store that is finished."""
        if for_good and self.rows is None:
            for path in (*range_locks(self.path.parent), self.path):
                path.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        elif (holder := _holder(self.descriptor)) is not None and self.path.exists():
            _describe(self.descriptor, self.since, int(holder["position"]), True)
        os.close(self.descriptor)
        if self.shared is not None:
            os.close(self.shared)


def acquire(folder: Path, *, take_over: bool = False) -> Lock:
    """Lock a whole store for writing.

    Raises:
        StoreBusyError: another process writes it, or a part of it; says which.
        StoreError: the folder cannot be written.
    """
    descriptor = _locked(folder / LOCK, fcntl.LOCK_EX, take_over)
    try:
        for path in range_locks(folder):
            os.close(_locked(path, fcntl.LOCK_EX, take_over))
        return _held(Lock(folder / LOCK, descriptor, 0))
    except BaseException:
        os.close(descriptor)
        raise


def share(folder: Path, rows: Callable[[], range], settle: Callable[[], None], *, take_over: bool = False) -> Lock:
    """Lock some rows of a store for writing, beside writers of others.

    `settle` is called first where no other process writes; `rows` is asked once nobody can change the store as a whole.

    Raises:
        StoreBusyError: another process writes some of the rows, or the whole store and does not end; says which.
        StoreError: the folder cannot be written.
    """
    shared = _joined(folder, settle, take_over)
    try:
        asked = rows()
        path = folder / f"writer.{asked.start}-{asked.stop}.lock"
        descriptor = _locked(path, fcntl.LOCK_EX, take_over)
        try:
            for other, theirs in range_locks(folder).items():
                if other != path and theirs.start < asked.stop and asked.start < theirs.stop:
                    os.close(_locked(other, fcntl.LOCK_EX, take_over))
            return _held(Lock(path, descriptor, 0, asked, shared))
        except BaseException:
            os.close(descriptor)
            raise
    except BaseException:
        os.close(shared)
        raise


def _held(lock: Lock) -> Lock:
    """Write down who holds the lock now, and return it with what the one before had begun."""
    holder = _holder(lock.descriptor)
    return lock.moved_to(int(holder["position"]) if holder else 0)


def _joined(folder: Path, settle: Callable[[], None], take_over: bool) -> int:
    """Return the store's lock, shared; the first to come holds it alone while it settles."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            alone = acquire(folder, take_over=take_over)
        except StoreBusyError:
            alone = None
        if alone is not None:
            try:
                settle()
            finally:
                alone.release(for_good=False)
        try:
            return _locked(folder / LOCK, fcntl.LOCK_SH, take_over)
        except StoreBusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def range_locks(folder: Path) -> dict[Path, range]:
    """Return the locks of ranges that are there, with their rows."""
    found = {path: _RANGE.fullmatch(path.name) for path in sorted(folder.glob("writer.*-*.lock"))}
    return {path: range(int(match[1]), int(match[2])) for path, match in found.items() if match}


_RANGE = re.compile(r"writer\.(\d+)-(\d+)\.lock")


def _locked(path: Path, kind: int, take_over: bool) -> int:
    """Return an open file whose lock is ours.

    Raises:
        StoreBusyError, StoreError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, READABLE)
    except OSError as error:
        reason = error.strerror
        raise StoreError(f"cannot write in {path.parent}: {reason}. Give an --out that can be written.") from error
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        _check_lease(path, descriptor, take_over)
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except BlockingIOError:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise StoreBusyError(_busy(path, holder)) from None
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)  # the writer before us finished and removed its lock between our open and our flock
    return _locked(path, kind, take_over)


def _check_lease(path: Path, descriptor: int, take_over: bool) -> None:
    """Refuse a lock that a process of another machine has not given back, unless it may be taken over.

    Raises:
        StoreBusyError: says who holds it, and what can be done.
    """
    holder = _holder(descriptor)
    if holder is None or holder["left"] or holder["host"] == socket.gethostname():
        return
    silent = _silent_seconds(path, descriptor)
    if silent <= SILENT_SECONDS:
        raise StoreBusyError(
            f"{_whole(path)} is being written by {_named(holder)}. Wait for it, or stop it. It was heard of "
            f"{silent:.0f} s ago; if that machine is gone, --take-over takes its place once that is {SILENT_SECONDS} s."
        )
    if not take_over:
        raise StoreBusyError(
            f"{_whole(path)} was being written by {_named(holder)}, which was not heard of for {silent:.0f} s. If it is "
            "gone, give --take-over; nothing that was committed is lost."
        )


def _silent_seconds(path: Path, descriptor: int) -> float:
    """Return how long ago the lock was written, by the clock of the file system: those of two machines may differ."""
    probe = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(probe, "wb") as file:
            return max(0.0, os.fstat(file.fileno()).st_mtime - os.fstat(descriptor).st_mtime)
    finally:
        probe.unlink(missing_ok=True)


def _whole(path: Path) -> str:
    match = _RANGE.fullmatch(path.name)
    return f"{path.parent}, rows {match[1]} to {int(match[2]) - 1}," if match else str(path.parent)


def _busy(path: Path, holder: re.Match[str] | None) -> str:
    """Return who writes; where many share the store's lock, one of them is named."""
    if path.name == LOCK and (holder is None or holder["left"]):
        for other in range_locks(path.parent):
            descriptor = os.open(other, os.O_RDONLY)
            theirs = _holder(descriptor)
            os.close(descriptor)
            if theirs is not None and not theirs["left"]:
                return f"{_whole(other)} is being written by {_named(theirs)}. Wait for it, or stop it."
    return f"{_whole(path)} is being written by {_named(holder)}. Wait for it, or stop it."


def _describe(descriptor: int, since: float, position: int, left: bool) -> None:
    line = f"{os.getpid()} {socket.gethostname()} {int(since)} {position}{' left' if left else ''}\n"
    os.pwrite(descriptor, line.encode().ljust(512), 0)


_HOLDER = re.compile(r"(?P<process>\d+) (?P<host>\S+) (?P<since>\d+) (?P<position>\d+)(?P<left> left)?\n")


def _holder(descriptor: int) -> re.Match[str] | None:
    return _HOLDER.match(os.pread(descriptor, 512, 0).decode(errors="replace"))


def _named(holder: re.Match[str] | None) -> str:
    if holder is None:
        return "another process"
    seconds = max(0, int(time.time()) - int(holder["since"]))
    return f"process {holder['process']} on {holder['host']}, for {seconds} s"
