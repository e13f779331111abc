"""How many threads compute on the CPU: one where the work is small, else one for every core that this process may use.

Threads that share out small products spend their time waiting for each other, and they wait by spinning: a head on 245
rows took 30 times its CPU time with two threads on a busy machine. What one thread computes also has the same bits
whatever the number of cores. Whoever says a number, by `--threads` or OMP_NUM_THREADS, is given that number.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from featurecache.checks import Config, check

FEW_ROWS = 5000
"""Rows up to which one thread is taken, unless a row is very long."""
MANY_VALUES = 2**28
"""Values of all rows together from which that holds no more."""
SMALL_STEP = 2**24
"""Products of a step of training, rows times parameters, below which one thread is faster whatever the number of rows."""
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

C = TypeVar("C", bound="Computing")
R = TypeVar("R")

_asked: ContextVar[int | None] = ContextVar("asked", default=None)


@dataclass(frozen=True, kw_only=True)
class Computing(Config):
    """What is computed on this machine; the configs of the verbs that do so extend it."""

    threads: int | None = None
    """Threads that compute on the CPU; default: one for small problems, else as many as there are cores to use."""


def cores() -> int:
    """Return how many cores this process may use: those of its affinity, or of its CPU quota where that is less."""
    if hasattr(os, "process_cpu_count"):  # heeds PYTHON_CPU_COUNT too
        allowed = os.process_cpu_count() or 1
    else:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(groups: Path = CGROUPS, own: Path = OWN_CGROUP) -> float | None:
    """Return how many cores' worth of time the control group of this process grants; None where it sets no limit.

    Groups lie in one another, and the least of their limits holds. A container may show its own group as the root.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        homes = [groups] if not controllers else [groups / controllers, groups / "cpu"]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for home in homes:
            inside = home / path.lstrip("/")
            quotas += [quota for folder in (inside, *inside.parents) if (quota := _quota_in(folder)) is not None]
    return min(quotas, default=None)


def _quota_in(folder: Path) -> float | None:
    """Return the limit of one group, of version 2 or 1."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def asked_threads() -> int | None:
    """Return the number that was asked for, by a config or by the environment of the process; None where none was."""
    if _asked.get() is not None:
        return _asked.get()
    given = next((os.environ[name] for name in VARIABLES if os.environ.get(name, "").isdigit()), None)
    return None if given is None else max(1, int(given))


def choose_threads(rows: int | None = None, *, values: int = 1, step: float | None = None) -> int:
    """Return how many threads are to compute.

    Args:
        rows: that are computed with; None: they decide nothing, as rows that are images to be seen by a model.
        values: of a row, in all arrays and for all heads together.
        step: products of one step of training, where it is steps that are made.
    """
    if (asked := asked_threads()) is not None:
        return asked
    if rows is not None and rows <= FEW_ROWS and rows * values < MANY_VALUES:
        return 1
    if step is not None and step < SMALL_STEP:
        return 1
    return all_threads()


def all_threads() -> int:
    """Return as many threads as there are cores to use, or fewer where torch was told so."""
    torch = sys.modules.get("torch")
    return cores() if torch is None else min(cores(), torch.get_num_threads())


@contextmanager
def suited_threads(rows: int | None = None, *, values: int = 1, step: float | None = None) -> Iterator[int]:
    """Compute with as many threads as suit the work within the block; see `choose_threads`."""
    with limited_threads(choose_threads(rows, values=values, step=step)) as count:
        yield count


@contextmanager
def limited_threads(count: int) -> Iterator[int]:
    """Let torch and the BLAS of NumPy compute with `count` threads within the block, and as before after it."""
    torch = sys.modules.get("torch")
    with ExitStack() as restored:
        if torch is not None and torch.get_num_threads() != count:
            restored.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(count)
        restored.enter_context(_blas(len(sys.modules)).limit(limits=count, user_api="blas"))
        yield count


@functools.lru_cache(maxsize=1)
def _blas(modules: int) -> Any:
    """Return what sets the threads of the libraries that are loaded; looked for again when there are more `modules`."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _exceeds_cores() -> bool:
    """Return whether torch begins with more threads than this process may use: it knows of no quota."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.get_num_threads() > cores()


def heeds_threads(run: Callable[[C], R]) -> Callable[[C], R]:
    """Let the `run` of a verb compute with the threads that its config asks for; the caller's are as before after it.

    Raises:
        ConfigError: fewer than one was asked for.
    """

    @functools.wraps(run)
    def with_threads(config: C) -> R:
        count = config.threads
        check((count is None or count > 0, f"threads must be positive, got {count}"))
        with ExitStack() as restored:
            if count is not None:
                token = _asked.set(count)
                restored.callback(_asked.reset, token)
                restored.enter_context(limited_threads(count))
            elif asked_threads() is None and _exceeds_cores():
                restored.enter_context(limited_threads(all_threads()))
            return run(config)

    return with_threads
