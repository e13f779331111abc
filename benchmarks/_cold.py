"""Files that the kernel no longer holds in memory, as those of a store larger than RAM, and how fast the disk alone gives them."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path

from _reporting import Ratio, in_turns, middle, seconds

from featurecache.sources import Order
from featurecache.sources.cached import CachedSource, split_rows
from featurecache.stores import open_store

COLD_LIMIT = 0.8
BUFFER = 2**23


def chunk_files(store: Path, arrays: Sequence[str]) -> list[Path]:
    """Return the chunk files of some arrays, in the order of the rows."""
    return [file for name in arrays for file in sorted((store / name / "c").rglob("0"), key=_number) if file.is_file()]


def _number(file: Path) -> list[int]:
    parts = file.parts[file.parts.index("c") + 1 :]
    return [int(part) for part in parts]


def forget(files: Sequence[Path]) -> None:
    """Ask the kernel to let go of the pages of these files; it keeps those that a process still maps."""
    gc.collect()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def disk_seconds(files: Sequence[Path]) -> float:
    """Seconds of reading all files one after the other, once the kernel has let go of them."""
    forget(files)
    room = memoryview(bytearray(BUFFER))

    def read() -> None:
        for path in files:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(room):
                    pass

    return seconds(read)


def pass_seconds(store: Path, arrays: Sequence[str], order: Order, batch_size: int) -> float:
    """Seconds of one pass over every training row of a store that is opened for it, batches gathered and dropped."""
    opened = open_store(store)
    source = CachedSource(opened, arrays, split_rows(opened, "train"))

    def run() -> None:
        for _ in source.batches(batch_size, order=order):
            pass

    return seconds(run)


def measure_cold(store: Path, arrays: Sequence[str], turns: int, batch_size: int) -> list[Ratio]:
    """Bandwidth of a pass over a store of which nothing is in memory, over that of reading its files and nothing else."""
    files = chunk_files(store, arrays)
    size = sum(file.stat().st_size for file in files) / 1e6

    def cold(order: Order) -> float:
        forget(files)
        return pass_seconds(store, arrays, order, batch_size)

    found = in_turns([lambda: disk_seconds(files), lambda: cold("sequential"), lambda: cold("blocks")], turns)
    ratios = []
    for place, order in enumerate(("sequential", "block-shuffled"), 1):
        of_turns = [turn[0] / turn[place] for turn in found]
        figures = {
            "disk MB/s": size / middle([t[0] for t in found]),
            "store MB/s": size / middle([t[place] for t in found]),
        }
        ratios.append(
            Ratio(what=f"cold {order} pass, {size:.0f} MB", against="the disk's own read bandwidth", value=middle(of_turns),
                  limit=COLD_LIMIT, of_each_turn=of_turns, figures=figures)
        )  # fmt: skip
    return ratios
