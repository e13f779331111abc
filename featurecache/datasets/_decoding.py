"""Bytes to RGB pictures, as timm's own reader decodes them; what cannot be decoded is named with the reason.

Decoding runs in several threads, so nothing here touches the filters of `warnings`, which all threads share.
"""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from featurecache.errors import UnreadableSampleError

FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "DIB",
    "WEBP",
    "TIFF",
    "PPM",
    "JPEG2000",
    "AVIF",
    "ICO",
    "PCX",
    "SGI",
    "QOI",
    "DDS",
)
"""Told by content, not by suffix. Pillow knows more; one of them (EPS) would start another program on a hostile file."""
LARGEST_FILE = 2**30
"""Bytes. The largest picture that Pillow decodes without complaint fills less, uncompressed, in 16-bit RGBA."""


def decode(content: bytes, sample_id: str) -> Image.Image:
    """Return the picture in `content`, RGB, fully decoded.

    Raises:
        UnreadableSampleError: empty, truncated, no picture, or so large that it must be an attack.
    """
    if not content:
        raise UnreadableSampleError(sample_id, "the file is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if _is_bomb(image):
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        image.load()
        if isinstance(image.info.get("transparency"), bytes):
            del image.info["transparency"]  # no part of RGB; `convert` would warn of it, once per process
        return image.convert("RGB")
    except UnidentifiedImageError:
        reason = f"it is not a picture in one of {', '.join(FORMATS)}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = f"it is too large to be decoded safely ({error}); PIL.Image.MAX_IMAGE_PIXELS sets the limit"
    except Exception as error:  # on hostile bytes the plugins of Pillow raise nearly everything there is
        reason = str(error) or type(error).__name__
    raise UnreadableSampleError(sample_id, reason)


def _is_bomb(image: Image.Image) -> bool:
    # between once and twice the limit Pillow itself only warns
    return Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS


def check_size(size: int, sample_id: str) -> None:
    """Refuse a file that is too large to be a picture, before it is read.

    Raises:
        UnreadableSampleError: it has more than `LARGEST_FILE` bytes.
    """
    if size > LARGEST_FILE:
        raise UnreadableSampleError(
            sample_id, f"it has {size} bytes, and no picture that can be decoded safely has more than {LARGEST_FILE}"
        )
