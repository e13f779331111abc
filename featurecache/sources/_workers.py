"""Worker processes that fill batches ahead of the model, in memory that they share with it.

The memory is a ring of batches without a name in any folder, so nothing of it outlives the processes, however they end.
They are spawned, not forked: a fork of a process with threads (torch's, a GPU's) can hang.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from featurecache.errors import WorkerError
from featurecache.processes import interrupts_held, told_end
from featurecache.sources._filler import Filler, packed
from featurecache.sources._problems import Found
from featurecache.sources._worker import NO_ROW, Current, Ring, enter, fill

LARGEST_PIECE = 8
"""Rows that a worker takes at a time, at most: few enough that all workers end a batch together."""


class Workers:
    """Fills batches of at most `batch` rows in `count` processes; at most `slots` batches may be under way."""

    def __init__(self, filler: Filler, input_size: tuple[int, int, int], *, count: int, batch: int, slots: int) -> None:
        shape = (slots, len(filler.which), batch, *input_size)
        content = packed(filler)
        context = multiprocessing.get_context("spawn")
        memory: Any = context.RawArray(ctypes.c_float, int(np.prod(shape)))
        sent: Any = context.RawArray(ctypes.c_char, len(content))
        current: Any = context.RawArray(ctypes.c_int64, [0, NO_ROW] * count)
        self._sample_id, self._current = filler.sample_id, current
        ctypes.memmove(sent, content, len(content))
        self._ring: Ring = np.frombuffer(memory, np.float32).reshape(shape)
        self._begun, self._piece = 0, max(1, min(LARGEST_PIECE, batch // count))
        others = {process.pid for process in multiprocessing.active_children()}
        self._pool = ProcessPoolExecutor(
            count, context, enter, (sent, memory, shape, _limits(), current, context.Value("i", 0))
        )
        with interrupts_held():
            for _ in range(count):
                self._pool.submit(os.getpid)
        self._processes = [p for p in multiprocessing.active_children() if p.pid not in others]

    def begin(self, rows: Sequence[Any]) -> Callable[[], tuple[Tensor, list[Found]]]:
        """Let the next slot be filled; what is returned waits for it and gives a batch (V, B, 3, H, W) of its own memory.

        Raises (what is returned):
            WorkerError: a worker died, or cannot import what it needs.
        """
        slot = self._begun % len(self._ring)
        self._begun += 1
        pieces = [(first, rows[first : first + self._piece]) for first in range(0, len(rows), self._piece)]
        try:
            futures = [self._pool.submit(fill, slot, first, piece) for first, piece in pieces]
        except BrokenProcessPool:
            raise self._died() from None
        return lambda: self._finish(slot, len(rows), futures)

    def _finish(self, slot: int, count: int, futures: Sequence[Future[list[Found]]]) -> tuple[Tensor, list[Found]]:
        try:
            found = [error for future in futures for error in future.result()]
        except BrokenProcessPool:
            raise self._died() from None
        return torch.from_numpy(self._ring[slot, :, :count]).clone(), found

    def close(self, *, at_once: bool) -> None:
        """End the processes: when they have done what they began, or at once."""
        if at_once:
            for process in self._processes:
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _died(self) -> WorkerError:
        self._pool.shutdown(wait=True)
        ended = told_end([process.exitcode for process in self._processes])
        return WorkerError(
            f"a worker process that decodes images {ended}{self._at()}. Rows that were committed stay, and the same command goes "
            "on. Give fewer --workers or a smaller --batch-size if memory was short (the system's log says so), or "
            "--workers 0, which decodes in threads. A script of one's own that asks for workers must do so below "
            'if __name__ == "__main__".'
        )

    def _at(self) -> str:
        """Return which pictures the dead were at; the pool itself terminates those that live."""
        dead = {p.pid for p in self._processes if p.exitcode not in (None, 0, -signal.SIGTERM)}
        lines: Current = np.frombuffer(self._current, np.int64).reshape(-1, 2)
        names = [repr(self._sample_id[row]) for process, row in lines.tolist() if process in dead and row != NO_ROW]
        return f" while it was at {' and '.join(names)}" if names else ""


def _limits() -> tuple[int | None, bool]:
    """Return what users set in Pillow, which a new process does not know."""
    return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
