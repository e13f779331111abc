"""Trainings that do not wait for each other: cells of one command, each in a folder of its own, several at a time.

On a CPU a small model trains faster as two processes of one thread than as one of two: its products are too small to be
shared out. What a stopped cell had done is in its folder, so ending the processes at any time loses little.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from featurecache.checks import check
from featurecache.errors import WorkerError
from featurecache.processes import interrupts_held, serve, told_end
from featurecache.threads import cores

T = TypeVar("T")


def done(act: Callable[[T], Any], tasks: Sequence[T], jobs: int) -> Iterator[T]:
    """Call `act` on every task, `jobs` at a time, and yield each task when it is done.

    One job is this process itself, in the order of the tasks. Several are processes that share the cores; `act` and the
    tasks must be what a new process can import. Results differ from those of one job by the rounding of other threads.

    Raises:
        ConfigError: several jobs under torchrun.
        WorkerError: a process died, or could not begin.
        Exception: what the act raised first; the cells under way are stopped and go on another time.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        for task in tasks:
            act(task)
            yield task
        return
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    check((alone, "several jobs and torchrun both divide the machine: give one of them"))
    context = multiprocessing.get_context("spawn")
    others = {process.pid for process in multiprocessing.active_children()}
    with ProcessPoolExecutor(jobs, context, _begin, (max(1, cores() // jobs),)) as pool:
        with interrupts_held():
            for _ in range(jobs):
                pool.submit(os.getpid)
        processes = [process for process in multiprocessing.active_children() if process.pid not in others]
        try:
            waiting = {pool.submit(act, task): task for task in tasks}
            for future in as_completed(waiting):
                future.result()
                yield waiting[future]
        except BrokenProcessPool:
            pool.shutdown(wait=True)
            raise WorkerError(
                f"a process that trains {told_end([process.exitcode for process in processes])}. What is finished stays, and "
                "the same command goes on. Give fewer --jobs if memory was short (the system's log says so). A script of "
                'one\'s own that asks for jobs must do so below if __name__ == "__main__".'
            ) from None
        except BaseException:  # refused, or Ctrl-C: nobody waits for what the others are at
            for process in processes:
                process.terminate()
            raise


def _begin(threads: int) -> None:
    serve(threads)
    import torch

    torch.set_num_threads(threads)
