"""The usual first steps of a transform, a shorter side and a square out of the middle, without the library they come from.

A worker process that need not import it, nor torch, starts in a tenth of the time. The steps give the same bits as the
library's, which is tried on pictures before it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from featurecache.sources._later import Later

PROBES = ((31, 20), (20, 33), (24, 24))
"""(width, height) of the pictures that both must make the same of."""

MOST_ELONGATED = 256
"""Longer side by shorter side, at most, of pictures that are resized by the shorter side: to 224 pixels, one of 60,000 x 1
would become 13 million pixels wide, and a crop would keep 224 of these."""


class ElongatedPictureError(ValueError):
    """A picture that is too long to be resized by its shorter side."""


def check_shape(picture: Image.Image) -> None:
    """Refuse a picture that would take too much memory when it is resized by its shorter side.

    Raises:
        ElongatedPictureError: it is longer than `MOST_ELONGATED` times its shorter side.
    """
    shorter, longer = sorted(picture.size)
    if longer > MOST_ELONGATED * shorter:
        raise ElongatedPictureError(
            f"it is {picture.width} x {picture.height} pixels, longer than {MOST_ELONGATED} times its shorter side: resized by "
            "that side it would fill the memory, for a crop that shows next to nothing of it. Cut it into pieces"
        )


def resizes_shorter_side(steps: Sequence[Any]) -> bool:
    """Return whether one of the steps, of torchvision or timm, resizes by the shorter side and lets the longer one grow."""
    for step in steps:
        size = getattr(step, "size", None)
        if type(step).__name__ == "Resize" and (isinstance(size, int) or (size is not None and len(size) == 1)):
            return getattr(step, "max_size", None) is None
        if type(step).__name__ == "ResizeKeepRatio" and getattr(step, "longest", 1) < 1:
            return True
    return False


@dataclass(frozen=True, slots=True)
class Sized:
    """Does to RGB pictures what Resize and CenterCrop do."""

    side: int
    """Of the shorter side."""
    resampling: Image.Resampling
    crop: tuple[int, int] | None
    """(height, width)."""
    original: Later
    """The library's own steps, for pictures that are not RGB."""

    def __call__(self, picture: Image.Image) -> object:
        """Return the resized and cropped picture."""
        if picture.mode != "RGB":
            return self.original(picture)
        width, height = picture.size
        longer = int(self.side * max(width, height) / min(width, height))
        size = (self.side, longer) if width <= height else (longer, self.side)
        resized = picture if size == picture.size else picture.resize(size, self.resampling)
        if self.crop is None or self.crop == (resized.height, resized.width):
            return resized
        top, left = (round((have - want) / 2) for have, want in zip(resized.size[::-1], self.crop, strict=True))
        return resized.crop((left, top, left + self.crop[1], top + self.crop[0]))


def sized(steps: Sequence[Any], whole: Callable[[Any], object]) -> Sized | None:
    """Return what does the same as `whole`, a composition of these steps; None where they are not the usual ones."""
    from torchvision.transforms import CenterCrop, Resize

    kinds = [type(step) for step in steps]
    if kinds not in ([Resize], [Resize, CenterCrop]):
        return None
    side, crop = steps[0].size, tuple(steps[1].size) if len(steps) == 2 else None
    resampling = getattr(Image.Resampling, steps[0].interpolation.name, None)
    if not isinstance(side, int) or steps[0].max_size is not None or resampling is None or max(crop or (0,)) > side:
        return None
    found = Sized(side, resampling, crop, Later(whole))
    return found if all(_alike(found(probe), whole(probe)) for probe in map(_probe, PROBES)) else None


def _probe(size: tuple[int, int]) -> Image.Image:
    values = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(size[1], size[0], 3) * 2654435761 >> 24
    return Image.fromarray(values.astype(np.uint8))


def _alike(ours: object, theirs: object) -> bool:
    pictures = isinstance(ours, Image.Image) and isinstance(theirs, Image.Image)
    return pictures and np.array_equal(np.asarray(ours), np.asarray(theirs))
