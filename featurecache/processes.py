"""Processes that work for this one: what Ctrl-C does to them, how they end with their parent, how their death is told."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Begin processes that inherit deafness to Ctrl-C, which in a terminal is then answered by this process alone."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(threads: int) -> None:
    """Be a process that works for its parent: deaf to Ctrl-C, gone when the parent is, with so many threads a product."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))  # for torch, where it is imported


def _end_with_parent() -> None:
    """End this process when its parent is gone, killed perhaps: the pool's queue would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def told_end(exit_codes: Sequence[int | None]) -> str:
    """Return how the process of a pool ended that was the first to die: the pool itself terminates the others."""
    own = [end for end in exit_codes if end not in (None, 0, -signal.SIGTERM)] or [-signal.SIGTERM]
    end = own[0]
    if end is not None and end < 0:
        more = ", as the system does when memory is out" if -end in (signal.SIGKILL, signal.SIGBUS) else ""
        return f"was killed by {signal.Signals(-end).name}{more}"
    return f"ended with exit code {end}"
