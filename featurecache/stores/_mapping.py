"""Chunk files mapped one behind the other, so that a chunked array reads like one memory-mapped file.

Random mini-batches through a chunked reader are a hundred times slower than a memory map. Our chunks are uncompressed and
fill whole pages, so the kernel can lay all of them into one range of addresses: one NumPy array, no copy, no loop.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_FILES = 16384
"""A process may hold 65,530 mappings on Linux; a store must not take them all."""

_MAP_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value


def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


def can_map(file_bytes: int, files: int) -> bool:
    """Return whether `files` chunks of `file_bytes` each can lie behind each other."""
    return os.name == "posix" and file_bytes % mmap.PAGESIZE == 0 and 0 < files <= MOST_FILES


def map_files(
    paths: Sequence[Path | None], file_bytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Return one array of `shape` over the files in order, which must be of full size; None reads as zeros.

    Pages are private: writing to the array changes no file. The mapping is undone when the array is collected.
    """
    libc, total = _libc(), file_bytes * len(paths)
    base = _map(libc, None, total, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    buffer = (ctypes.c_char * total).from_address(base)
    weakref.finalize(buffer, libc.munmap, base, total)
    for number, path in enumerate(paths):
        if path is not None:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                _map(libc, base + number * file_bytes, file_bytes, mmap.MAP_PRIVATE | _MAP_FIXED, descriptor)
            finally:
                os.close(descriptor)
    return np.frombuffer(memoryview(buffer), dtype=dtype, count=int(np.prod(shape, dtype=np.int64))).reshape(shape)


def _map(libc: ctypes.CDLL, address: int | None, size: int, flags: int, descriptor: int) -> int:
    found: int = libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0)
    if found == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found
