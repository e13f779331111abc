"""Images for the benchmarks, and how fast all cores together could decode them if they did nothing else."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _reporting import seconds
from PIL import Image

from featurecache.backbones import Backbone
from featurecache.datasets import ImageDataset
from featurecache.decoders import Decoder
from featurecache.sources._filler import filler_of, packed
from featurecache.views import Views

CLASSES = 100


def draw(folder: Path, count: int, width: int, height: int | None = None) -> None:
    """Write JPEG files that cost as much to decode as photographs: smooth light, shapes with edges, grain."""
    rng, height = np.random.default_rng(0), height or width
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
        for _ in range(6):
            top, left, high, wide = rng.integers(0, [height, width, height, width])
            pixels[top : top + high, left : left + wide] *= rng.uniform(0.3, 1.5, 3).astype(np.float32)
        pixels += rng.normal(0, 6, pixels.shape).astype(np.float32)
        place = folder / f"{number % CLASSES:03d}" / f"{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place, quality=90)


_decoding: dict[str, Any] = {}


def _begin_decoding(filler: bytes, input_size: tuple[int, int, int]) -> None:
    torch.set_num_threads(1)
    _decoding.update(fill=pickle.loads(filler), places=np.empty((1, *input_size), np.float32))


def _decode(rows: range) -> None:
    for row in rows:
        _decoding["fill"](row, _decoding["places"])


@contextmanager
def decoding(backbone: Backbone, dataset: ImageDataset, cores: int, decoder: Decoder) -> Iterator[Callable[[], float]]:
    """Give what measures the seconds of decoding every image, in one process a core and into memory of its own."""
    rows = len(dataset)
    pieces = [range(start, min(start + 8, rows)) for start in range(0, rows, 8)]
    given = (packed(filler_of(backbone, dataset, Views(), decoder)), backbone.input_size)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, context, initializer=_begin_decoding, initargs=given) as pool:

        def measure() -> float:
            return seconds(lambda: list(pool.map(_decode, pieces)))

        measure()  # processes started, files in the page cache
        yield measure
