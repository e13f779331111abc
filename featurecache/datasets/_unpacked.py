"""A .tar that is compressed as a whole, unpacked once into a plain .tar for as long as this process lives.

One picture in it cannot be read without unpacking all those before it, so it is unpacked to a temporary file beside those of
the system. The file is locked while it is in use; what a killed process left behind is removed by the next that unpacks.
"""

from __future__ import annotations

import atexit
import bz2
import fcntl
import gzip
import logging
import lzma
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from featurecache.errors import DatasetError

log = logging.getLogger("featurecache")

OPENERS: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""First bytes of a compressed file -> what reads it."""
ZSTD = b"\x28\xb5\x2f\xfd"
PREFIX, SUFFIX = "featurecache-unpacked-", ".tar"
PIECE = 4 * 2**20
SPARE = 0.1
"""Share of the free space that is left to others."""
FRESH_SECONDS = 60
"""A file that is younger may be about to be locked."""

_held: dict[tuple[str, int, int], tuple[Path, int, int]] = {}
"""(path, size, time of change) -> (plain .tar, descriptor that holds its lock, process that made it)."""


def plain_tar(path: Path) -> Path:
    """Return where the members of a .tar can be read one by one: the file itself, or what it was unpacked to.

    Raises:
        DatasetError: it is compressed in a way that cannot be read here, or there is no room to unpack it.
        OSError, EOFError: it cannot be read, or is damaged.
    """
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(ZSTD):
        raise DatasetError(
            f"{path} is compressed with zstd, which is not read here. Unpack it and name the folder, or pack it as .tar or .zip."
        )
    opener = next((found for start, found in OPENERS.items() if magic.startswith(start)), None)
    if opener is None:
        return path
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _held or not _held[key][0].exists():
        _held[key] = _unpack(path, opener)
    return _held[key][0]


def _unpack(path: Path, opener: Callable[[Any], Any]) -> tuple[Path, int, int]:
    folder = Path(tempfile.gettempdir())
    _sweep(folder)
    room = int(shutil.disk_usage(folder).free * (1 - SPARE))
    log.info("%s is compressed as a whole: unpacking it into %s, once for this command", path, folder)
    descriptor, name = tempfile.mkstemp(SUFFIX, PREFIX, folder)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    held = Path(name), descriptor, os.getpid()
    try:
        written = _copy(path, opener, descriptor, room)
    except BaseException:
        _remove(held)
        raise
    if written > room:
        _remove(held)
        raise DatasetError(
            f"{path} unpacks to more than the {room // 2**20} MiB that may be used in {folder}. Name a folder with more room in the "
            "variable TMPDIR, or unpack the archive and name its folder."
        )
    log.info("unpacked %.1f MiB; they are removed when the command ends", written / 2**20)
    atexit.register(_remove, held)
    return held


def _copy(path: Path, opener: Callable[[Any], Any], descriptor: int, room: int) -> int:
    """Return the bytes that were written; more than `room` where that does not suffice."""
    written = 0
    with opener(path) as packed, os.fdopen(descriptor, "wb", closefd=False) as file:
        try:
            while written <= room and (piece := packed.read(PIECE)):
                written += file.write(piece)
        except lzma.LZMAError as error:
            raise EOFError(str(error)) from None
    return written


def _remove(held: tuple[Path, int, int]) -> None:
    path, descriptor, process = held
    if process == os.getpid():  # a child that was forked ends without it
        path.unlink(missing_ok=True)
        with suppress(OSError):  # closed already
            os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove files that no process holds any more."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with suppress(OSError):  # another user's, or removed meanwhile
            if time.time() - path.stat().st_mtime < FRESH_SECONDS:
                continue
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
