"""Pages of mapped rows asked of the disk before they are gathered: a fault for each would wait for the disk each time."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

PIECE = 2**17
"""Bytes of one request: the kernel cuts a longer one to what a disk reads ahead, 128 KiB by default."""
NEAR = 32
"""Rows between two wanted ones that are read too, rather than begin a new request."""

_WILLNEED, _POPULATE_READ = 3, 22


class Ahead:
    """Reads the windows of an order of rows into the page cache, one window before it is needed, on one thread."""

    def __init__(self, values: Sequence[Tensor], rows: npt.NDArray[np.integer[Any]], window: int) -> None:
        """Prepare to read `rows`, in windows of so many, of arrays (N, ...) that are mapped."""
        self.values, self.rows, self.window = values, rows, window
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
        self._asked: list[Future[None]] = []

    def reach(self, stop: int) -> None:
        """Wait until the rows before place `stop` of the order are in memory; the window behind them is on its way."""
        last = (stop - 1) // self.window
        while len(self._asked) <= last + 1 and len(self._asked) * self.window < len(self.rows):
            start = len(self._asked) * self.window
            self._asked.append(self._pool.submit(self._read, self.rows[start : start + self.window]))
        self._asked[last].result()

    def _read(self, rows: npt.NDArray[np.integer[Any]]) -> None:
        runs = list(_runs(rows))
        for values in self.values:
            for start, stop in runs:
                _load(values, start, stop)

    def close(self) -> None:
        """Stop the thread; what it has not begun is not read."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _runs(rows: npt.NDArray[np.integer[Any]]) -> Iterator[tuple[int, int]]:
    ascending = rows if (rows[1:] >= rows[:-1]).all() else np.sort(rows)
    edges = np.flatnonzero(np.diff(ascending) > NEAR) + 1
    for run in np.split(ascending, edges):
        yield int(run[0]), int(run[-1]) + 1


def _load(values: Tensor, start: int, stop: int) -> None:
    """Bring the pages of rows `start` to `stop` - 1 into memory."""
    row = values.stride(0) * values.element_size()
    first = values.data_ptr() + start * row
    begin = first - first % mmap.PAGESIZE
    end = first + (stop - start) * row
    for place in range(begin, end, PIECE):
        _advise(place, min(PIECE, end - place), _WILLNEED)
    _advise(begin, end - begin, _POPULATE_READ)  # waits, and spares the reader the faults; older kernels know it not


def can_read_ahead() -> bool:
    """Return whether this system can be asked."""
    return os.name == "posix" and hasattr(_LIBC, "madvise")


_LIBC = ctypes.CDLL(None) if os.name == "posix" else None


def _advise(place: int, size: int, advice: int) -> None:
    assert _LIBC is not None
    _LIBC.madvise(ctypes.c_void_p(place), ctypes.c_size_t(size), advice)
