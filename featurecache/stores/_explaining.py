"""What the operating system refuses, said in the words of a store: what failed, why, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from featurecache.errors import StoreError


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the operating system refuses into a `StoreError` that says what failed, why, and what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"cannot {what}: {error.strerror or error}. Nothing that was committed is lost: "
            "make room or restore access, then run the same command again."
        ) from error
