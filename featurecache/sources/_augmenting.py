"""Images as training sees them: another draw in every pass, a function of pass and sample alone.

Neither the order of the rows, nor threads or workers, nor what was drawn before moves a draw, so that a training that was
stopped sees what it would have seen.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from featurecache.backbones import Backbone
from featurecache.checks import bind_options
from featurecache.datasets import ImageDataset
from featurecache.decoders import Decoder
from featurecache.errors import ConfigError, UnknownNameError
from featurecache.registry import nearest
from featurecache.seeding import seed_of
from featurecache.sources._fast_jpeg import pixels_of
from featurecache.sources._filler import Filler, filler_of
from featurecache.sources._pixels import Place, Preparation, preparation
from featurecache.sources._problems import Found, explain_failure, note_of
from featurecache.views import RECIPES, Views

NONE, TIMM = "none", "timm"
AUGMENTATIONS = (NONE, *RECIPES, TIMM)
"""The clean picture; the recipes of cached views; timm's own pipeline of training."""

Item = tuple[int, int]
"""(row, pass); pass 0 is the clean picture."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """Fills the place of an `Item`. Threads and workers share it."""

    clean: Filler
    prepare: Preparation | None = None
    """timm's pipeline; None: the views of `clean`."""
    which: tuple[int, ...] = (0,)

    @property
    def read(self) -> Callable[[int], Image.Image]:
        """What reads a row."""
        return self.clean.read

    @property
    def content(self) -> Callable[[int], bytes | None]:
        """What reads the bytes of a row."""
        return self.clean.content

    @property
    def sample_id(self) -> Sequence[str]:
        """Name of every row."""
        return self.clean.sample_id

    def __call__(self, item: Item, places: Sequence[Place]) -> Found:
        """Write a picture into `places[0]`, (3, H, W); return as `Filler` does."""
        row, number = item
        if self.prepare is None or not number:
            return replace(self.clean, which=(number,))(row, places)
        picture: Image.Image | None = None
        try:
            pixels = None if self.clean.fast is None else pixels_of(self.clean.content(row))
            picture = self.clean.read(row) if pixels is None else Image.fromarray(pixels)
            with _drawing_from(seed_of("augment", number, self.clean.sample_id[row])):
                self.prepare(picture, places[0])
            return note_of(picture, self.clean.sample_id[row])
        except Exception as error:  # as in `Filler`
            places[0][...] = 0
            return explain_failure(error, self.clean.sample_id[row], picture)


def drawing(
    backbone: Backbone,
    dataset: ImageDataset,
    augment: str,
    options: Mapping[str, Any],
    decoder: Decoder,
    kept: Views | None = None,
) -> Drawing:
    """Return what fills places with images that are augmented in the way called `augment`, or as views that stores keep.

    Raises:
        UnknownNameError: there is no such way; names the nearest.
        ConfigError: lists every option that is wrong, or that only timm's pipeline has.
    """
    if augment not in AUGMENTATIONS:
        raise UnknownNameError(
            f"there is no augmentation called {augment!r}.{nearest(augment, list(AUGMENTATIONS))} "
            f"Known: {', '.join(AUGMENTATIONS)}."
        )
    if augment != TIMM and options:
        raise ConfigError([f"augment {augment} has no options; {', '.join(options)} are those of timm's pipeline"])
    views = kept or (Views(augment=augment) if augment in RECIPES else Views())
    clean = filler_of(backbone, dataset, views, decoder)
    if augment != TIMM:
        return Drawing(clean)
    return Drawing(clean, preparation(_pipeline(backbone, **bind_options(_pipeline, options, "augment timm"))))


def _pipeline(
    backbone: Backbone,
    *,
    scale: tuple[float, ...] = (0.08, 1.0),
    ratio: tuple[float, ...] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float = 0.4,
    auto_augment: str | None = None,
    re_prob: float = 0.0,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
) -> Any:
    """Return timm's pipeline of training for the size and colours of a backbone; `auto_augment` is e.g. rand-m9-mstd0.5."""
    import timm.data

    known: Mapping[str, Any] = backbone.identity.get("transform", {})
    try:
        return timm.data.create_transform(  # type: ignore[attr-defined]
            backbone.input_size, is_training=True, scale=_two(scale), ratio=_two(ratio), hflip=hflip, vflip=vflip,
            color_jitter=color_jitter, auto_augment=auto_augment, re_prob=re_prob, grayscale_prob=grayscale_prob,
            gaussian_blur_prob=gaussian_blur_prob, **{k: known[k] for k in ("mean", "std", "interpolation") if k in known},
        )  # fmt: skip
    except (AssertionError, ValueError, TypeError, LookupError) as error:
        raise ConfigError([f"timm makes no augmentation of these options: {type(error).__name__}: {error}"]) from None


def _two(numbers: Sequence[float]) -> tuple[float, float]:
    low, high = numbers
    if not 0 < low <= high:
        raise ValueError(f"{tuple(numbers)} is no span from small to large")
    return low, high


_turns = threading.Lock()


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Let Python, NumPy and torch draw from a seed; what they drew from before goes on afterwards.

    timm draws from the generators of the process, which threads share: they take turns.
    """
    import torch

    with _turns:
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())  # of the CPU alone
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])
