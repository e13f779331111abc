"""JPEG files into their places in a batch by simplejpeg and a resize in whole numbers, for the usual transforms only.

Whatever is not a plain JPEG in colour or grey (another format, CMYK, a damaged or enormous file) is left to the exact path,
which decodes it or says why it cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from featurecache.sources._pixels import InPlace, Place, Preparation, keeps_rgb
from featurecache.sources._sized import MOST_ELONGATED

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.transforms import InterpolationMode

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3)."""

COLOURS = ("YCbCr", "RGB", "Gray")
TALLEST = 2
"""Height by width. Pillow shrinks pictures that are taller than that in height first: bicubic overshoot is cut elsewhere, and
where there are hard edges values differ by 18 of 255."""
START = b"\xff\xd8\xff"
"""The first bytes of every JPEG file."""


@dataclass(frozen=True, slots=True, eq=False)
class FastJpeg:
    """Does what Resize, CenterCrop, ToTensor and Normalize do, on pixels instead of a picture, rounding a little otherwise."""

    size: int
    """Of the shorter side."""
    interpolation: InterpolationMode
    crop: list[int] | None
    """Height and width."""
    normalise: InPlace

    def __call__(self, pixels: Pixels, place: Place) -> bool:
        """Write pixels, transformed, into `place`; return False where that must be left to the exact path."""
        import torch
        from torchvision.transforms.v2 import functional

        height, width = pixels.shape[:2]
        if height > TALLEST * width or width > MOST_ELONGATED * height:
            return False
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        image = functional.resize(image, [self.size], interpolation=self.interpolation, antialias=True)
        if self.crop is not None:
            image = functional.center_crop(image, self.crop)
        if tuple(image.shape) != place.shape:
            return False
        self.normalise.fill(image.numpy(), place)
        return True


def pixels_of(content: bytes | None) -> Pixels | None:
    """Return the pixels of a JPEG file, exactly those that Pillow decodes; None where Pillow had better look itself."""
    import simplejpeg

    if content is None or not content.startswith(START):
        return None
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(content)
        if colour not in COLOURS or _too_large(width, height):
            return None
        return _decoded(content)
    except ValueError:  # also for damage that could be decoded around: Pillow decides what is a picture
        return None


def _decoded(content: bytes) -> Pixels:
    import simplejpeg

    exact: dict[str, Any] = {"colorspace": "RGB", "fastdct": False, "fastupsample": False, "strict": True}
    found: Pixels = simplejpeg.decode_jpeg(content, **exact)
    return found


def _too_large(width: int, height: int) -> bool:
    return Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS


def fast_jpeg(transform: Callable[[Image.Image], Tensor], prepare: Preparation) -> FastJpeg | None:
    """Return what does nearly the same as `transform`, None where its steps are not the usual ones."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    if prepare.fast is None or not isinstance(transform, Compose):
        return None
    steps = [step for step in transform.transforms[:-2] if not keeps_rgb(step)]
    if [type(step) for step in steps] not in ([Resize], [Resize, CenterCrop]):
        return None
    resize = steps[0]
    if resize.interpolation not in (InterpolationMode.BICUBIC, InterpolationMode.BILINEAR):
        return None
    if not isinstance(resize.size, int) or resize.max_size is not None or not resize.antialias:
        return None  # to another shape, Pillow may resize height before width, and bicubic overshoot is cut elsewhere
    return FastJpeg(resize.size, resize.interpolation, list(steps[1].size) if len(steps) == 2 else None, prepare.fast)
