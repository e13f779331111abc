"""Which files are pictures: by suffix where it is that of a picture, else by their first bytes, as Pillow tells formats."""

from __future__ import annotations

import io
from collections.abc import Callable
from os.path import splitext

from PIL import Image, UnidentifiedImageError

from featurecache.datasets._decoding import FORMATS, LARGEST_FILE

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".bmp",
        ".dib",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".pfm",
        ".jp2",
        ".j2k",
        ".j2c",
        ".jpc",
        ".jpf",
        ".jpx",
        ".avif",
        ".avifs",
    ]
)
"""Files of these suffixes are rows without being opened, so that a million of them are listed in seconds."""
NOT_AS_SHOWN = frozenset(
    [
        ".dng",
        ".nef",
        ".nrw",
        ".cr2",
        ".cr3",
        ".arw",
        ".srf",
        ".sr2",
        ".orf",
        ".rw2",
        ".raf",
        ".pef",
        ".srw",
        ".3fr",
        ".iiq",
        ".svs",
        ".ndpi",
        ".scn",
        ".bif",
        ".vms",
        ".lsm",
    ]
)
"""Raw files of cameras and slides of microscopes: inside many are TIFF, and Pillow would read a thumbnail or a part."""
PREFIX = 64
"""Bytes that tell every format of Pillow."""
HIDDEN = frozenset(
    ("__MACOSX", "Thumbs.db", "thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", "Icon\r", "@eaDir", "#recycle",
     "$RECYCLE.BIN", "System Volume Information", "lost+found")
)  # fmt: skip
"""What operating systems leave in folders."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of that name is none of the data."""
    return name.startswith(".") or name in HIDDEN


def has_image_suffix(name: str) -> bool:
    """Return whether a file name ends as those of pictures do, in small or capital letters."""
    return splitext(name)[1].lower() in SUFFIXES


def is_picture(name: str, size: int, read: Callable[[int], bytes]) -> bool:
    """Return whether a file whose suffix does not say so is a picture.

    Args:
        name: file name; raw files of cameras are none, whatever their content.
        size: its bytes; -1: unknown.
        read: returns so many bytes of it from the start, fewer where it is shorter. Of what is no picture, 64 are read.
    """
    if splitext(name)[1].lower() in NOT_AS_SHOWN or size > LARGEST_FILE:
        return False
    Image.init()
    prefix = read(PREFIX).ljust(PREFIX, b"\0")  # the tests of some formats fail on fewer bytes
    accepts = {form: Image.OPEN[form][1] for form in FORMATS if form in Image.OPEN}
    likely = [form for form, accept in accepts.items() if accept is not None and accept(prefix) is True]
    if not likely:
        return False
    try:  # two letters of a text may be those of a format: its header must be one, too
        Image.open(io.BytesIO(read(LARGEST_FILE)), formats=likely).close()
    except Image.DecompressionBombError:
        return True  # a picture, and reading it says that it is too large
    except OSError as error:
        if not isinstance(error, UnidentifiedImageError) and error.errno is not None:
            raise
        return False
    except Exception:  # on bytes that are no picture the plugins of Pillow raise nearly everything there is
        return False
    return True
