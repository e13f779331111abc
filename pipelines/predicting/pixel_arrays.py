"""Pictures that callers hold as arrays and tensors, as PIL images; whatever is no picture is refused in words.

| given | one picture | a batch | values |
|---|---|---|---|
| NumPy array | (H, W), (H, W, C) | (N, H, W, C) | uint8, or floats from 0 to 1 |
| torch tensor | (H, W), (C, H, W) | (N, C, H, W) | uint8, or floats from 0 to 1 |

C is 1 (grey), 3 (RGB) or 4 (RGB and alpha). A picture is resized, cropped and normalised as those of the training were, so
that it is given as it was loaded: floats are rounded to the 256 values of a file's.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from featurecache.errors import ConfigError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels -> mode of PIL."""
ONE = (str, os.PathLike, Image.Image, np.ndarray, Tensor, bytes, bytearray, Mapping, io.IOBase)
"""What may be walked through, and is one item all the same."""


def list_pictures(given: Any) -> list[Any]:
    """Return PIL images and paths, in the order given, of one of these, of an array or tensor, or of several in a row.

    Raises:
        ConfigError: lists everything that is no picture, with its place and why.
    """
    if isinstance(given, np.ndarray) and given.dtype.kind in "OU":
        given = given.tolist()  # of paths or pictures
    one = isinstance(given, ONE) or not isinstance(given, Iterable)
    found: list[Any] = []
    problems: list[str] = []
    for place, item in enumerate([given] if one else given):
        try:
            found += _pictures_in(item)
        except ValueError as error:
            problems.append(str(error) if one else f"item {place}: {error}")
    if problems:
        raise ConfigError(problems)
    return found


def _pictures_in(item: Any) -> list[Any]:
    if isinstance(item, (str, os.PathLike, Image.Image)):
        return [item]
    if isinstance(item, Tensor):
        values = item.detach().cpu()
        values = values if values.ndim < 3 else values.movedim(-3, -1)
        as_given = values.float() if values.is_floating_point() else values  # NumPy knows no bfloat16
        return _images(as_given.numpy(), f"a tensor of the shape {tuple(item.shape)}", "(C, H, W) or (N, C, H, W)")
    if isinstance(item, np.ndarray):
        return _images(item, f"an array of the shape {item.shape}", "(H, W, C) or (N, H, W, C)")
    raise ValueError(
        f"{type(item).__name__} is no picture: give PIL images (PIL.Image.open reads files and io.BytesIO), paths of "
        "files, folders or archives, arrays or tensors"
    )


def _images(values: npt.NDArray[Any], what: str, shapes: str) -> list[Image.Image]:
    """Return the PIL images of (H, W), (H, W, C) or (N, H, W, C) values; `what` they were is for messages."""
    channels = values.shape[-1] if values.ndim > 2 else 1
    if values.ndim not in (2, 3, 4) or channels not in MODES or 0 in values.shape:
        raise ValueError(f"{what} is no picture: it must be (H, W), {shapes}, with C 1, 3 or 4 channels")
    if values.ndim == 2:
        values = values[..., None]
    batch = values if values.ndim == 4 else values[None]
    pixels = [np.ascontiguousarray(_bytes(picture, what)) for picture in batch]
    return [Image.fromarray(p[..., 0] if channels == 1 else p, MODES[channels]) for p in pixels]


def _bytes(values: npt.NDArray[Any], what: str) -> npt.NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        raise ValueError(f"{what} holds {values.dtype}: give uint8, or floats from 0 to 1")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # a NaN is neither
        raise ValueError(
            f"{what} holds floats from {low:.4g} to {high:.4g}: give them from 0 to 1, and do not normalise them, since the "
            "run does that itself; of values from 0 to 255 give uint8"
        )
    rounded: npt.NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
    return rounded
