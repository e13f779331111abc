"""Progress of long steps on stderr: rate, time left, and what is being waited for.

On a terminal that is a bar; elsewhere, in a log or a notebook's output, one line a minute; nothing under --quiet.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

log = logging.getLogger("featurecache")

EVERY_SECONDS = 60.0
"""Time between two lines where there is no terminal."""


class Stopwatch:
    """Where the time of a step went, by what was waited for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._started = time.perf_counter()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Count the time of the block under `what`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start

    @property
    def elapsed(self) -> float:
        """Seconds since the step began."""
        return time.perf_counter() - self._started

    def __str__(self) -> str:
        total = self.elapsed or 1.0
        return " ".join(f"{what} {seconds / total:.0%}" for what, seconds in self.seconds.items())


class Bar:
    """The progress of one step: a bar on a terminal, elsewhere a line a minute."""

    def __init__(self, title: str, total: int, done: int, quiet: bool, *, unit: str = "rows") -> None:
        self._title, self._total, self._first, self._done, self._unit = title, total, done, done, unit
        self._watch, self._waited = Stopwatch(), ""
        self._bar = _TerminalBar(title, total, done) if not quiet and sys.stderr.isatty() else None
        self._lines = None if quiet or self._bar else _Ticker(self._print_line)

    def __enter__(self) -> Bar:
        for shown in (self._bar, self._lines):
            if shown:
                shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        for shown in (self._bar, self._lines):
            if shown:
                shown.stop()

    def advance(self, rows: int, watch: Stopwatch) -> None:
        """Count `rows` more rows, or whatever else the unit is, as done."""
        self._done += rows
        self._waited = str(watch)
        if self._bar:
            self._bar.update(self._done, self._rate())

    def _rate(self) -> str:
        rate = format_rate(self._done - self._first, self._watch.elapsed, self._unit)
        return f"{rate} ({self._waited})" if self._waited else rate

    def _print_line(self) -> None:
        """Print where the step stands."""
        words = [f"{self._title}: {self._done}/{self._total} {self._unit}"]
        if self._done > self._first:
            seconds = self._watch.elapsed * (self._total - self._done) / (self._done - self._first)
            words += [self._rate(), f"{format_seconds(seconds)} left"]
        print(", ".join(words), file=sys.stderr, flush=True)


def format_rate(done: int, seconds: float, unit: str) -> str:
    """Return how fast it goes: units a second, or seconds a unit where that is less than one."""
    rate = done / max(seconds, 1e-9)
    if done <= 0 or rate >= 1:
        return f"{rate:.0f} {unit}/s" if rate >= 10 or done <= 0 else f"{rate:.1f} {unit}/s"
    return f"{1 / rate:.1f} s/{unit.removesuffix('s')}"


def format_seconds(seconds: float) -> str:
    """Return a time in the largest unit of which there is one."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


class _TerminalBar:
    """A bar that also says what is waited for."""

    def __init__(self, title: str, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        self._task = self._progress.add_task(title, total=total, completed=done, rate="")

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def update(self, done: int, rate: str) -> None:
        self._progress.update(self._task, completed=done, rate=rate)


class _Ticker:
    """Calls a function every minute, from its start to its stop, whatever the step waits for meanwhile."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act, self._over = act, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="progress")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            self._act()


@contextmanager
def says_when_loading(library: str, text: str) -> Iterator[None]:
    """Log `text` when `library` begins to load within the block: large ones take seconds, from a cold disk many."""
    watcher = _Watcher(library, text)
    sys.meta_path.insert(0, watcher)
    try:
        yield
    finally:
        sys.meta_path.remove(watcher)


class _Watcher(MetaPathFinder):
    """Sees what is imported and finds nothing itself."""

    def __init__(self, library: str, text: str) -> None:
        self._library, self._text = library, text

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == self._library:
            log.info(self._text)
        return None
