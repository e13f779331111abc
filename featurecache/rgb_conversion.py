"""Decoded pictures to 8-bit RGB: how more than 8 bits, floats and transparency become values from 0 to 255.

Pictures of 8 bits become what Pillow's `convert("RGB")` makes of them, bit for bit. The scale of a deeper picture comes
from its format or from the user, never from the picture itself, so that all pictures of a data set are scaled alike;
where neither says it, the picture is refused.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from featurecache.errors import DatasetError

ALPHA = ("drop", "white", "black")
"""What becomes of transparency: nothing (the colours below it are seen), or a ground of one colour."""
OPTIONS = ("range", "alpha")
FULL_SCALE = 65535
"""Largest value of 16 bits."""
DARK = 4096
"""A 16-bit picture whose values all lie below it holds 12 bits or fewer; scaled by `FULL_SCALE`, at most 16 grey levels."""
HALF_A_LEVEL = 1 / 510
"""By how much values of float pictures may leave [0, 1]; they are clipped."""
NOTE = "featurecache note"
"""Key in the `info` of a picture that can be used, but of which its user should know something."""
ALPHA_ALONE = "one colour everywhere and a shape in the alpha channel alone"


@dataclass(frozen=True, slots=True)
class RgbConversion:
    """Converts decoded pictures to RGB of 8 bits a channel."""

    range: tuple[float, float] | None = None
    """(value that becomes 0, value that becomes 255) of pictures with more than 8 bits; values beyond are clipped."""
    alpha: str = "drop"

    @classmethod
    def parse(cls, options: Mapping[str, str], spec: str) -> RgbConversion:
        """Read the options `range=LOW..HIGH` and `alpha=drop|white|black` of a data set.

        Raises:
            DatasetError: a value is not of that form.
        """
        alpha = options.get("alpha", "drop")
        if alpha not in ALPHA:
            raise DatasetError(f"{spec!r} has alpha={alpha}. Give one of {', '.join(ALPHA)}.")
        if "range" not in options:
            return cls(None, alpha)
        try:
            low, high = map(float, options["range"].split(".."))
        except ValueError:
            low = high = math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise DatasetError(f"{spec!r} has range={options['range']}. Give LOW..HIGH, such as range=0..4095.")
        return cls((low, high), alpha)

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> RgbConversion:
        """Return the conversion that the identity of a data set records; the default one where it records none."""
        pixels = identity.get("pixels", {})
        scale = pixels.get("range")
        return cls(None if scale is None else (float(scale[0]), float(scale[1])), pixels.get("alpha", "drop"))

    @property
    def identity(self) -> dict[str, Any]:
        """What the identity of a data set records of this conversion; {} for the default."""
        scale = {} if self.range is None else {"range": list(self.range)}
        return {**scale, **({} if self.alpha == "drop" else {"alpha": self.alpha})}

    @property
    def query(self) -> str:
        """The options that `parse` reads, joined by &; "" for the default."""
        scale = [] if self.range is None else [f"range={self.range[0]:.17g}..{self.range[1]:.17g}"]
        return "&".join([*scale, *([] if self.alpha == "drop" else [f"alpha={self.alpha}"])])

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the RGB picture; one that users should know something of says so in its `info` under `NOTE`.

        Raises:
            ValueError: its values cannot be scaled without the user's word; says what was seen, and the way out.
        """
        bits = bits_of(image)
        image.load()
        if image.mode == "F" or image.mode.startswith("I"):
            return Image.fromarray(self._scale(image, bits)).convert("RGB")
        if self.alpha != "drop" and _has_alpha(image):
            ground = Image.new("RGBA", image.size, self.alpha)
            found = Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
        else:
            found = _without_alpha(image)
        if bits == 16:
            self._check_reduced(found)
        return found

    def _scale(self, image: Image.Image, bits: int) -> npt.NDArray[np.uint8]:
        """Return (H, W) uint8 of a picture with one channel of more than 8 bits."""
        values = np.asarray(image)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError("it holds values that are NaN or infinite")
        low, high = values.min().item(), values.max().item()
        if self.range is not None:
            return _stretch(values, *self.range)
        if image.mode == "F":
            if low < -HALF_A_LEVEL or high > 1 + HALF_A_LEVEL:
                raise ValueError(
                    f"its float values span {low:g} to {high:g}, and only those from 0 to 1 say by themselves what is black "
                    "and white. Name the range of the data set, e.g. DATA?range=0..255"
                )
            return _stretch(values, 0.0, 1.0)
        if bits == 32 or low < 0:
            if low < 0 or high > 255:
                raise ValueError(
                    f"its {bits}-bit values span {low} to {high}, and nothing says what is black and white. Name the range "
                    "of the data set, e.g. DATA?range=0..65535"
                )
            return values.astype(np.uint8)
        full = (1 << bits) - 1
        if bits == 16 and 0 < high < DARK:
            raise ValueError(dark_message(high))
        return ((values.astype(np.int64) * 255 + full // 2) // full).astype(np.uint8)

    def _check_reduced(self, found: Image.Image) -> None:
        """Refuse 16-bit colour, which Pillow has reduced to its upper 8 bits, where these hold next to nothing."""
        if self.range not in (None, (0.0, float(FULL_SCALE))):
            raise ValueError(
                "it holds 16-bit colour, of which only the upper 8 bits are decoded, so that range= cannot be followed. "
                "Save it with 8 bits a channel"
            )
        high = max(channel[1] for channel in found.getextrema())  # type: ignore[index]
        if self.range is None and 0 < high < DARK >> 8:
            raise ValueError(
                f"{dark_message((high + 1) * 256 - 1)}. Of 16-bit colour only the upper 8 bits are decoded: save it "
                "with 8 bits a channel"
            )


def dark_message(high: int) -> str:
    """Return why a 16-bit picture with values up to `high` is refused, and the way out."""
    return (
        f"its 16-bit values end at {high} of {FULL_SCALE}, as where the file holds fewer bits: at full scale it would be "
        f"nearly black. Name the range of the whole data set, e.g. DATA?range=0..4095 for 12 bits, or "
        f"DATA?range=0..{FULL_SCALE} to take it as it is"
    )


def bits_of(image: Image.Image) -> int:
    """Return the bits of one value as the file holds them, 8 where it holds 8 or fewer; before the picture is loaded."""
    tags = getattr(image, "tag_v2", None)
    sample = tags.get(258) if tags else None  # BitsPerSample
    held = int(sample[0] if isinstance(sample, tuple) else sample or 0)
    if image.mode == "F":
        return 32
    if image.mode == "I":  # Pillow scales the values of PGM to 16 bits
        return 16 if held == 16 or image.format in ("PNG", "PPM") else 32
    if image.mode.startswith("I"):
        return 12 if held == 12 else 16
    return 16 if held > 8 or any(";16" in _raw_mode(tile) for tile in image.__dict__.get("tile", [])[:1]) else 8


def is_rescaled(content: bytes, formats: tuple[str, ...]) -> bool:
    """Return whether the values of the picture in a file are scaled to 8 bits here; False for what is no picture.

    Not so 16-bit colour, which Pillow reduces, and 32-bit whole numbers, which are 8-bit values or refused.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
        return image.mode == "F" or (image.mode.startswith("I") and bits_of(image) < 32)
    except Exception:  # on hostile bytes the plugins of Pillow raise nearly everything; decoding says what is wrong
        return False


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _stretch(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _without_alpha(image: Image.Image) -> Image.Image:
    """Return the colours alone, with a note where the alpha channel holds all there is to see."""
    kept = image.info.get("transparency")
    if isinstance(kept, bytes):
        del image.info["transparency"]  # no part of RGB; `convert` would warn of it, once per process
    found = image.convert("RGB")
    if kept is not None:
        image.info["transparency"] = kept  # the picture may be the caller's own
    if _has_alpha(image) and all(low == high for low, high in found.getextrema()):  # type: ignore[misc]
        low, high = image.convert("RGBA").getchannel("A").getextrema()
        if low != high:
            found.info[NOTE] = ALPHA_ALONE
    return found
