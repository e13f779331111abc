"""Images of a data set as the backbone wants them, decoded ahead of it, in batches on a fixed grid of row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from featurecache.backbones import Backbone
from featurecache.datasets import ImageDataset
from featurecache.devices import cores
from featurecache.errors import UnreadableSampleError
from featurecache.progress import Stopwatch
from featurecache.sources._pixels import Place, Preparation, preparation
from featurecache.views import Views

CLEAN_ONLY = Views()

AHEAD = 2
"""Batches that are decoded before they are asked for, where the model runs on a device of its own. On a CPU, model and
decoding would fight for the same cores: that took a fifth off the speed of both."""


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
    on_error: Literal["stop", "skip"],
    threads: int | None = None,
    views: Views = CLEAN_ONLY,
    which: Sequence[int] | None = None,
) -> Iterator[tuple[range, Tensor, dict[int, str]]]:
    """Yield (rows, (V, B, 3, H, W) images, position in the batch -> why it is skipped); view 0 is the clean one.

    `which` names the views to give, by number; None: all.

    Decoded on `threads` threads (None: one a core), ahead of the model where that helps. Images of skipped rows are zero.

    Raises:
        UnreadableSampleError: with `on_error` "stop", the first image in row order that cannot be read.
    """
    numbers = tuple(range(views.count) if which is None else which)
    decoder = Decoder(dataset, preparation(backbone.transform), backbone.input_size, views, numbers)
    pool = ThreadPoolExecutor(threads or cores(), thread_name_prefix="decode")
    try:
        started = (decoder.begin(rows, pool) for rows in batches)
        ahead = list(islice(started, 0 if backbone.device.type == "cpu" else AHEAD))
        for rows in batches:
            ahead += islice(started, 1)
            images, failures = ahead.pop(0)
            with watch.waiting("decode"):
                found = [future.result() for future in failures]
            skipped = {place: error.reason for place, error in enumerate(found) if error is not None}
            if skipped and on_error == "stop":
                raise next(error for error in found if error is not None)
            yield rows, images, skipped
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """Fills batches with the images of a data set."""

    dataset: ImageDataset
    prepare: Preparation
    input_size: tuple[int, int, int]
    views: Views
    which: tuple[int, ...]
    """Numbers of the views to give."""

    def begin(self, rows: range, pool: ThreadPoolExecutor) -> tuple[Tensor, list[Future[UnreadableSampleError | None]]]:
        """Return a batch (V, B, 3, H, W), and for each of its rows the future that fills it."""
        images = torch.empty(len(self.which), len(rows), *self.input_size)
        places = images.numpy().swapaxes(0, 1)
        return images, [pool.submit(self._fill, row, place) for row, place in zip(rows, places, strict=True)]

    def _fill(self, row: int, places: Sequence[Place]) -> UnreadableSampleError | None:
        try:
            views = self.views.of(self.dataset.read(row), self.dataset.table.sample_id[row], self.which)
            for view, place in zip(views, places, strict=True):
                self.prepare(view, place)
        except UnreadableSampleError as error:
            for place in places:
                place[...] = 0
            return error
        return None
