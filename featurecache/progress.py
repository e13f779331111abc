"""Progress of long steps on stderr: rate, time left, and what is being waited for; silent when nobody watches."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


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
    """A progress bar that also says what is waited for."""

    def __init__(self, title: str, total: int, done: int, quiet: bool, *, unit: str = "rows") -> None:
        self._total, self._first, self._unit, self._watch = total, done, unit, Stopwatch()
        self._shown = not quiet and sys.stderr.isatty()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self._progress = Progress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not self._shown
        )
        self._task = self._progress.add_task(title, total=total, completed=done, rate="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, rows: int, watch: Stopwatch) -> None:
        """Count `rows` more rows, or whatever else the unit is, as done."""
        done = self._progress.tasks[0].completed + rows - self._first
        rate = f"{done / max(self._watch.elapsed, 1e-9):.0f} {self._unit}/s ({watch})"
        self._progress.update(self._task, advance=rows, rate=rate)
