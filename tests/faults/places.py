"""Folders that fill up or cannot be written, for real: small file systems in memory, which root can mount on Linux."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

can_mount = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None,
    reason="only root mounts a file system, and only Linux has tmpfs",
)


@contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[Path]:
    """Make `place` a file system of so many KiB; skip the test where that is not allowed, as in most containers."""
    place.mkdir(exist_ok=True)
    size = f"size={kibibytes}k"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], check=False, capture_output=True
    ).returncode:
        pytest.skip("this root may not mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def resize(place: Path, kibibytes: int) -> None:
    """Give a small disk another size."""
    subprocess.run(["mount", "-o", f"remount,size={kibibytes}k", str(place)], check=True)


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Let nothing be written to a small disk."""
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)


def free(place: Path) -> int:
    """Return the bytes that can still be written."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
