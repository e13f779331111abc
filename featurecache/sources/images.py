"""Images of a data set as the backbone wants them, decoded ahead of it, in batches on a fixed grid of row numbers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from featurecache.backbones import Backbone
from featurecache.datasets import ImageDataset
from featurecache.decoders import Decoder
from featurecache.errors import UnreadableSampleError
from featurecache.progress import Stopwatch
from featurecache.sources._filler import Filler, filler_of, packed
from featurecache.sources._problems import Found, PictureNotes
from featurecache.sources._workers import Workers
from featurecache.threads import cores
from featurecache.views import Views

log = logging.getLogger("featurecache")

CLEAN_ONLY = Views()

AHEAD = 2
"""Batches that are decoded before they are asked for, by workers or where the model runs on a device of its own. On a CPU,
model and decoding threads would fight for the same cores: that took a fifth off the speed of both."""

Batch = tuple[Tensor, list[Found]]
"""(V, B, 3, H, W) images, and for each row why it could not be read, or what is to be known of it."""


class Feed(Protocol):
    """What fills batches ahead of the model."""

    def begin(self, rows: Sequence[Any]) -> Callable[[], Batch]:
        """Begin to fill a batch; what is returned waits for it."""

    def close(self, *, at_once: bool) -> None:
        """End threads or processes; at once: without what is begun."""


def grid(rows: range, batch_size: int) -> Iterator[range]:
    """Cut rows along the fixed grid of multiples of `batch_size`."""
    start = rows.start
    while start < rows.stop:
        stop = min(rows.stop, (start // batch_size + 1) * batch_size)
        yield range(start, stop)
        start = stop


def check_feed(backbone: Backbone, dataset: ImageDataset, *, workers: int, decoder: Decoder) -> None:
    """Refuse what could not be decoded so, before anything runs.

    Raises:
        ConfigError: the decoder is not installed, or the data set or the transform cannot be sent to workers.
    """
    filler = filler_of(backbone, dataset, CLEAN_ONLY, decoder)
    if decoder != "pillow" and filler.fast is None:
        log.warning("%s has a transform of its own: every image is decoded as with --decoder pillow", backbone.name)
    if workers:
        packed(filler)


def decoded(
    backbone: Backbone,
    dataset: ImageDataset,
    batches: Sequence[range],
    watch: Stopwatch,
    *,
    on_error: Literal["stop", "skip"],
    threads: int | None = None,
    workers: int = 0,
    views: Views = CLEAN_ONLY,
    which: Sequence[int] | None = None,
    decoder: Decoder = "pillow",
) -> Iterator[tuple[range, Tensor, dict[int, str]]]:
    """Yield (rows, (V, B, 3, H, W) images, position in the batch -> why it is skipped); view 0 is the clean one.

    `which` names the views to give, by number; None: all. Decoded in `workers` processes, or, with 0 of them, on
    `threads` threads (None: one a core); ahead of the model where that helps. Images of skipped rows are zero.

    Raises:
        UnreadableSampleError: with `on_error` "stop", the first image in row order that cannot be read.
        WorkerError: a worker process died.
        ConfigError: as `check_feed`.
    """
    if not batches:
        return
    filler, largest = filler_of(backbone, dataset, views, decoder, which), max(map(len, batches))
    feed: Feed
    if workers:
        ahead = max(AHEAD, -(-2 * workers // largest))  # small batches: enough of them that no worker is idle
        feed = Workers(filler, backbone.input_size, count=workers, batch=largest, slots=ahead + 1)
    else:
        ahead = 0 if backbone.device.type == "cpu" else AHEAD
        feed = Threads(filler, backbone.input_size, threads or cores())
    at_once, notes = True, PictureNotes()
    try:
        started = (feed.begin(rows) for rows in batches)
        waiting = deque(islice(started, ahead))
        for rows in batches:
            waiting += islice(started, 1)
            finish = waiting.popleft()
            with watch.waiting("decode"):
                images, found = finish()
            notes.add(found)
            errors = {place: one for place, one in enumerate(found) if isinstance(one, UnreadableSampleError)}
            if errors and on_error == "stop":
                raise next(iter(errors.values()))
            yield rows, images, {place: error.reason for place, error in errors.items()}
        at_once = False
    finally:
        notes.report()
        feed.close(at_once=at_once)


class Threads:
    """Fills batches on threads of this process."""

    def __init__(self, filler: Filler, input_size: tuple[int, int, int], count: int) -> None:
        self._filler, self._input_size, self._count = filler, input_size, count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self._ended = False

    def begin(self, rows: Sequence[Any]) -> Callable[[], Batch]:
        """Let a new batch be filled; what is returned waits for it."""
        images = torch.empty(len(self._filler.which), len(rows), *self._input_size)
        places = images.numpy().swapaxes(0, 1)
        found: list[Found] = [None] * len(rows)
        left = iter(range(len(rows)))

        def fill() -> None:
            # each thread takes the next image that is left: a task for every image costs more than a small image itself
            for number in left:
                if self._ended:
                    return
                found[number] = self._filler(rows[number], places[number])

        futures = [self._pool.submit(fill) for _ in range(min(self._count, len(rows)))]

        def finish() -> Batch:
            for future in futures:
                future.result()
            return images, found

        return finish

    def close(self, *, at_once: bool) -> None:
        """End the threads, after the images that are begun: a thread cannot be ended from outside."""
        self._ended = at_once
        self._pool.shutdown(wait=True, cancel_futures=True)
