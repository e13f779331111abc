"""Bytes to RGB pictures, as timm's own reader decodes them; what cannot be decoded is named with the reason.

Decoding runs in several threads, so nothing here touches the filters of `warnings`, which all threads share.
"""

from __future__ import annotations

import functools
import io
import os
import stat
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from featurecache.errors import UnreadableSampleError
from featurecache.rgb_conversion import RgbConversion

DEFAULT = RgbConversion()
FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "MPO", "ICO", "CUR", "ICNS", "DIB", "DDS",
    "FTEX", "BLP", "PCX", "DCX", "PSD", "QOI", "SGI", "SUN", "XBM", "XPM", "XVTHUMB", "MSP", "IM", "FITS", "FLI", "GBR", "PIXAR",
    "TGA",
)  # fmt: skip
"""Recognised by content, not by suffix; those with the weakest signatures last. Not EPS, which would start another program
on a hostile file, and not the formats that Pillow can only name. HEIF needs a plugin that registers itself with Pillow."""
USUAL = 9
"""Formats that a message names."""
LARGEST_FILE = 2**30
"""Bytes. The largest picture that Pillow decodes without complaint fills less, uncompressed, in 16-bit RGBA."""

KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def decode(content: bytes, sample_id: str, convert: RgbConversion = DEFAULT) -> Image.Image:
    """Return the picture in `content`, fully decoded and converted to RGB.

    Raises:
        UnreadableSampleError: empty, truncated, no picture, so large that it must be an attack, or of values whose scale nobody said.
    """
    if not content:
        raise UnreadableSampleError(sample_id, "the file is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=installed_formats())
        if _is_bomb(image):
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        return convert(image)
    except UnidentifiedImageError:
        reason = _what_it_is(content)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = f"it is too large to be decoded safely ({error}); PIL.Image.MAX_IMAGE_PIXELS sets the limit"
    except MemoryError:
        reason = "there is not enough memory to decode it"
    except Exception as error:  # on hostile bytes the plugins of Pillow raise nearly everything there is
        reason = str(error) or type(error).__name__
    raise UnreadableSampleError(sample_id, reason)


@functools.cache
def installed_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this installation of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _what_it_is(content: bytes) -> str:
    start = content[:256].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the picture. Fetch the pictures with git lfs pull"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not a picture: a download that failed"
    if start.startswith((b"<svg", b"<?xml")):
        return "it is SVG or other XML, which holds no pixels. Convert it to PNG"
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "it is a TIFF of a kind that Pillow does not read, such as floats or many bands in colour. Save it as RGB of 8 bits"
    if content[4:8] == b"ftyp" and content[8:12] in (b"heic", b"heix", b"mif1", b"hevc"):
        return "it is HEIC, which Pillow does not read. Convert it to JPEG or PNG"
    if content[128:132] == b"DICM":
        return "it is DICOM, which Pillow does not read. Convert it to 16-bit PNG, and name its values with DATA?range=LOW..HIGH"
    return f"it is not a picture in one of {', '.join(FORMATS[:USUAL])} or another format that Pillow reads"


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


def read_regular_file(path: Path, sample_id: str) -> bytes:
    """Return the bytes of a file, links followed. Nothing but a regular file is opened: a pipe or a device has no end.

    Raises:
        UnreadableSampleError: it cannot be read, is not a regular file, or is too large to be a picture.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "not a regular file")
            raise UnreadableSampleError(sample_id, f"it is {kind}, not a file with a picture in it")
        with path.open("rb") as file:
            check_size(os.fstat(file.fileno()).st_size, sample_id)
            return file.read()
    except UnreadableSampleError:
        raise
    except MemoryError:
        raise UnreadableSampleError(sample_id, "there is not enough memory to read it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnreadableSampleError(sample_id, getattr(error, "strerror", None) or str(error)) from None
