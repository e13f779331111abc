"""Writing behind the model: one thread casts, checks and writes a batch while the next one is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from featurecache.errors import StoreError

if TYPE_CHECKING:
    from featurecache.stores import FeatureStore

COMMIT_SECONDS = 30
"""A crash costs at most what was computed since the last commit."""


class WriteBehind:
    """Hands batches to a store in order, at most one ahead, and commits what is complete, also when the caller stops.

    A commit waits for everything before it, and the caller waits for the commit, so that a crash never costs more rows
    than those since the last commit. Errors of the thread surface at the next call.
    """

    def __init__(self, store: FeatureStore, commit_rows: int | None) -> None:
        self.store, self.commit_rows = store, commit_rows
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._last: Future[None] | None = None
        self._rows, self._committed = 0, time.monotonic()

    def write(
        self,
        rows: range,
        stored: Callable[[], Mapping[str, npt.NDArray[Any]]],
        skipped: Mapping[int, str],
        views: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Write what `stored` returns, (B, V, ...) each, as `rows`; `stored` runs on the thread, after earlier batches."""
        self._finish_last()
        self._last = self._thread.submit(lambda: self.store.write(rows, stored(), skipped, views))
        self._rows += len(rows)
        if self._is_due():
            self.commit()

    def _is_due(self) -> bool:
        by_rows = self.commit_rows is not None and self._rows >= self.commit_rows
        return by_rows or time.monotonic() - self._committed >= COMMIT_SECONDS

    def commit(self) -> None:
        """Wait until everything written so far is durable and true."""
        self._finish_last()
        # on the thread too: an interrupt ends the waiting, never the commit
        self._last = self._thread.submit(self.store.commit)
        self._finish_last()
        self._rows, self._committed = 0, time.monotonic()

    def _finish_last(self) -> None:
        last, self._last = self._last, None  # its failure is told once
        if last is not None:
            last.result()

    def __enter__(self) -> WriteBehind:
        # started before there is anything to write: an interrupt while the thread starts would have a second one begin
        # beside it, and the order of batches and commits is that of one thread
        self._thread.submit(lambda: None).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit the batches that are complete, unless the store itself has refused one."""
        try:
            if not isinstance(error, StoreError):
                self.commit()
        finally:
            self._thread.shutdown(wait=True)
