"""Warnings that many fits give alike: said once at the end of the work, with how often."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

log = logging.getLogger("featurecache")

_counted: ContextVar[dict[str, Counter[str]] | None] = ContextVar("counted", default=None)


def warn_repeatedly(where: str, detail: str, what: str) -> None:
    """Warn that "`where`: `detail` `what`"; inside `count_warnings` the warning is counted and given at its end.

    `where` and `what` are the same for all warnings of a kind, `detail` may differ each time.
    """
    counted = _counted.get()
    if counted is None:
        log.warning("%s: %s %s", where, detail, what)
    else:
        counted.setdefault(f"{where}: {{}} {what}", Counter())[detail] += 1


@contextmanager
def count_warnings() -> Iterator[None]:
    """Collect the warnings of `warn_repeatedly` and give each kind once when the work ends, however it ends."""
    if _counted.get() is not None:
        yield
        return
    token = _counted.set({})
    try:
        yield
    finally:
        counted = _counted.get() or {}
        _counted.reset(token)
        for text, details in counted.items():
            log.warning(text.replace("{}", _list_details(details)) + _count(sum(details.values())))


def _list_details(details: Counter[str]) -> str:
    """Return the details, the most frequent first: "the best lambda 10" or "the best lambda 10 (3 times), 0.001"."""
    if len(details) == 1:
        return next(iter(details))
    shown = [f"{text} ({count} times)" if count > 1 else text for text, count in details.most_common(3)]
    return ", ".join(shown) + (f" and {len(details) - 3} others" if len(details) > 3 else "")


def _count(times: int) -> str:
    return "" if times == 1 else f", {times} times in all"
