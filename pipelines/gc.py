"""The verb `gc`: what stopped runs left behind, found, counted and removed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.checks import Config, check
from featurecache.errors import StoreBusyError, StoreError
from featurecache.reports import Displayed, Table
from featurecache.stores import is_store, left_in, open_store

QUIET_SECONDS = 3600
"""What nobody has written to for so long belongs to no process any more, where its process cannot be asked for."""

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.tmp")


@dataclass(frozen=True, kw_only=True)
class GcConfig(Config):
    """Remove what stopped runs left behind: temporary files, chunks that no ledger names, trials of plan, empty sides.

    Nothing that is committed is touched, and no store that is being written.
    """

    store: Path
    """Store, or a folder with stores in it."""
    dry_run: bool = False
    """Only say what would be removed."""

    def __post_init__(self) -> None:
        check((self.store.exists(), f"{self.store} does not exist"))


@dataclass(frozen=True, kw_only=True)
class GcReport(Displayed):
    """What was removed, or would be."""

    found: tuple[tuple[str, str, int], ...]
    """Path, what it is, bytes."""
    busy: tuple[str, ...]
    """Stores that were left alone, with the reason."""
    dry_run: bool

    def tables(self) -> list[Table]:
        """Return what was found, and how many bytes."""
        verb = "would be removed" if self.dry_run else "removed"
        total = sum(size for _, _, size in self.found)
        return [
            Table("", ("path", "what", "bytes"), self.found, (f"{len(self.found)} {verb}, {total} bytes", *self.busy))
        ]

    def json(self) -> dict[str, Any]:
        """Return everything the table says."""
        found = [{"path": path, "what": what, "bytes": size} for path, what, size in self.found]
        return {"found": found, "busy": list(self.busy), "dry_run": self.dry_run}


def run(config: GcConfig) -> GcReport:
    """Find what was left, and remove it."""
    found: list[tuple[str, str, int]] = []
    busy: list[str] = []
    inside = {config.store} if is_store(config.store) else set(_stores(config.store))
    beside = config.store.parent if is_store(config.store) else config.store
    name = config.store.name if is_store(config.store) else ""
    for path, what in [*_beside(beside, name)]:
        found.append((str(path), what, _bytes(path)))
        if not config.dry_run:
            _remove(path)
    for store in sorted(inside):
        try:
            found += _of_store(store, config.dry_run)
        except StoreBusyError as error:
            busy.append(str(error))
        except StoreError as error:
            busy.append(f"{store} was left alone: {error}")
    return GcReport(found=tuple(found), busy=tuple(busy), dry_run=config.dry_run)


def _of_store(path: Path, dry_run: bool) -> list[tuple[str, str, int]]:
    if dry_run:
        return [(str(left), what, _bytes(left)) for left, what in left_in(path)]
    lefts = [(left, what, _bytes(left)) for left, what in left_in(path)]
    if not lefts:
        return []
    open_store(path, writable=True).close()  # whoever writes next clears what a kill left, and nobody writes now
    for left, _, _ in lefts:
        _remove(left)
    return [(str(left), what, size) for left, what, size in lefts]


def _stores(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if is_store(Path(place) / name):
                yield Path(place) / name
        folders[:] = [name for name in folders if not is_store(Path(place) / name) and not name.endswith(".tmp")]


def _beside(folder: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Yield what lies under temporary names of processes that are gone, trials of `plan`, and sides that are no store."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        for entry in sorted([*folders, *files]):
            path = here / entry
            if name and name not in entry:
                continue
            if (match := _TEMPORARY.fullmatch(entry)) and _is_gone(path, match):
                yield path, "unfinished creation or copy"
            elif entry.startswith(".featurecache-plan-") and _is_quiet(path):
                yield path, "trial of plan"
            elif (
                entry.endswith((".h5.zarr", ".hdf5.zarr")) and not (path / "ledger.jsonl").exists() and _is_quiet(path)
            ):
                yield path, "side of a file that is finished"
        folders[:] = [] if name else [one for one in folders if not one.startswith(".") and not is_store(here / one)]


def _is_gone(path: Path, match: re.Match[str]) -> bool:
    if not match["name"].endswith(f".{socket.gethostname()}"):
        return _is_quiet(path)  # a process of another machine cannot be asked for
    process = int(match["process"])
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _is_quiet(path: Path) -> bool:
    newest = max(one.lstat().st_mtime for one in [path, *path.rglob("*")])
    return time.time() - newest > QUIET_SECONDS


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
