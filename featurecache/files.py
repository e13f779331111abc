"""Writing files so that after a crash the disk tells the truth: temporary name, fsync, rename, fsync the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

READABLE = 0o666
"""Permissions that a new file asks for; the umask takes off what is not wanted."""


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path`: whole and durable, or not at all."""
    _replace(path, lambda temporary: temporary.write_bytes(content))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name, then give it its own: whole and durable, or not at all.

    Who may read it is what the umask says, even where `write` makes a private file, as safetensors does.
    """

    def write_readable(temporary: Path) -> None:
        # the permissions of a new file, seen and not computed: to read the umask is to change it for other threads
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, READABLE))
        mode = temporary.stat().st_mode & 0o777
        write(temporary)
        if temporary.stat().st_mode & 0o777 != mode:
            os.chmod(temporary, mode)

    _replace(path, write_readable)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def json_bytes(value: Any) -> bytes:
    """Return `value` as readable JSON that is the same for equal values on every machine."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
