"""Images of a data set as the backbone wants them, decoded ahead of it, in batches on a fixed grid of row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor

from featurecache.backbones import Backbone
from featurecache.datasets import ImageDataset
from featurecache.errors import UnreadableSampleError
from featurecache.progress import Stopwatch

AHEAD = 2
"""Batches that are decoded before they are asked for."""


def grid(rows: range, batch_size: int) -> Iterator[range]:
    """Cut rows along the fixed grid of multiples of `batch_size`."""
    start = rows.start
    while start < rows.stop:
        stop = min(rows.stop, (start // batch_size + 1) * batch_size)
        yield range(start, stop)
        start = stop


def decoded(
    backbone: Backbone,
    dataset: ImageDataset,
    batches: Sequence[range],
    watch: Stopwatch,
    *,
    threads: int,
    on_error: Literal["stop", "skip"],
) -> Iterator[tuple[range, Tensor, dict[int, str]]]:
    """Yield (rows, (B, 3, H, W) images, position in the batch -> why it is skipped), decoded two batches ahead."""

    def one(row: int) -> Tensor | UnreadableSampleError:
        try:
            return backbone.transform(dataset.read(row))
        except UnreadableSampleError as error:
            return error

    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        ahead = [[pool.submit(one, row) for row in rows] for rows in batches[:AHEAD]]
        for number, rows in enumerate(batches):
            if number + AHEAD < len(batches):
                ahead.append([pool.submit(one, row) for row in batches[number + AHEAD]])
            with watch.waiting("decode"):
                samples = [future.result() for future in ahead.pop(0)]
            yield rows, *_assembled(samples, backbone.input_size, on_error)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _assembled(
    samples: Sequence[Tensor | UnreadableSampleError], size: tuple[int, int, int], on_error: str
) -> tuple[Tensor, dict[int, str]]:
    images = torch.zeros(len(samples), *size)
    skipped: dict[int, str] = {}
    for place, sample in enumerate(samples):
        if isinstance(sample, UnreadableSampleError):
            if on_error == "stop":
                raise sample
            skipped[place] = sample.reason
        else:
            images[place] = sample
    return images, skipped
