"""A process that dies at one step of what it does, for tests that try every step.

Every call that changes a file is a step. The n-th is where the process is killed: before it, or in the middle of it where
features are written.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = ("fsync", "replace", "rename", "ftruncate", "pwrite", "unlink", "mkdir", "rmdir")
"""Names in `os`. A buffered file is opened, written and then synced: its steps are before the next one, or the sync."""


def counted(last: int) -> Callable[[], int]:
    """Let this process die at its step `last`; return how to ask how many there were."""
    numbers = itertools.count(1)

    def stepping(act: Callable[..., Any], name: str) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            if next(numbers) == last:
                if name == "pwrite":
                    descriptor, content, offset = arguments
                    act(descriptor, bytes(content)[: len(content) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return None if name == "fsync" else act(*arguments, **named)  # what a kill leaves, the kernel keeps

        return step

    for name in STEPS:
        setattr(os, name, stepping(getattr(os, name), name))
    return lambda: next(numbers) - 1


def die(act: Callable[[Path], None], place: Path, last: int) -> int:
    """Act in a fork that dies at step `last`; return how many steps there were, 0 where it died."""
    context = multiprocessing.get_context("fork")
    steps = context.Value("i", 0)
    process = context.Process(target=_dying, args=(act, place, last, steps))
    process.start()
    process.join()
    assert process.exitcode == (0 if steps.value else -signal.SIGKILL)
    return int(steps.value)


def _dying(act: Callable[[Path], None], place: Path, last: int, steps: Any) -> None:
    count = counted(last)
    act(place)
    steps.value = count()
