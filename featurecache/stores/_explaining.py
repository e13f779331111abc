"""What the operating system refuses, said in the words of a store: what failed, why, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurecache.errors import StoreDamagedError, StoreError, StoreNotFoundError
from featurecache.path_kinds import STORES, explain_path, suggest_path


def not_a_store(path: Path) -> StoreNotFoundError:
    """Return the error for a path at which there is no store: what lies there instead, and which command is right."""
    if why := explain_path(path, "store"):
        return StoreNotFoundError(f"{path} is not a feature store: {why}.")
    if path.exists():
        return StoreNotFoundError(
            f"{path} is there, but it is not a feature store: it has no ledger. Give another path."
        )
    return StoreNotFoundError(
        f"{path} does not exist.{suggest_path(path, STORES)} Make one with: featurecache extract-features DATA "
        f"--backbone NAME --out {path}"
    )


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


@contextmanager
def reading(path: Path, ledger: str = "ledger.jsonl") -> Iterator[None]:
    """Say of a store that is removed while it is read that it is gone, and of a file that vanishes which one it is.

    Raises:
        StoreNotFoundError: there is no store at `path` any more.
        StoreDamagedError: there is, but a file of it is gone.
    """
    try:
        yield
    except OSError as error:
        if not (path / ledger).exists():
            raise StoreNotFoundError(
                f"{path} was removed while it was read. Put it back, or make it again with: featurecache extract-features "
                f"DATA --backbone NAME --out {path}"
            ) from error
        if not isinstance(error, FileNotFoundError) or isinstance(error, StoreError):
            raise
        raise StoreDamagedError(
            f"{error.filename} is gone. Mend it with: featurecache verify {path} --repair"
        ) from error
