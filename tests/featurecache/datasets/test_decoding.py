"""Pictures are decoded as timm's own reader decodes them, or refused with a reason; nothing else ever comes out."""

from __future__ import annotations

import io
import random
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm.data
from PIL import Image

from featurecache.datasets import open_dataset
from featurecache.datasets._decoding import decode
from featurecache.errors import UnreadableSampleError
from tests.featurecache.datasets.pictures import as_folder, encoded, pixels


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb(seed: int = 0) -> Image.Image:
    return Image.fromarray(pixels(seed))


def rotated_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(rgb(), "JPEG", exif=exif)


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds almost nothing."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


ODD_BUT_GOOD = {
    "1x1.jpg": saved(rgb().resize((1, 1)), "JPEG"),
    "cmyk.jpg": saved(rgb().convert("CMYK"), "JPEG"),
    "grey.jpg": saved(rgb().convert("L"), "JPEG"),
    "progressive.jpg": saved(rgb(), "JPEG", progressive=True),
    "exif.jpg": rotated_by_exif(),
    "alpha.png": saved(rgb().convert("RGBA"), "PNG"),
    "bilevel.png": saved(rgb().convert("1"), "PNG"),
    "grey_alpha.png": saved(rgb().convert("LA"), "PNG"),
    "palette.png": saved(rgb().quantize(16), "PNG"),
    "palette_transparent.png": saved(rgb().quantize(16), "PNG", transparency=bytes(range(16))),
    "palette_one_transparent.png": saved(rgb().quantize(16), "PNG", transparency=3),
    "animated.gif": saved(rgb(1), "GIF", save_all=True, append_images=[rgb(2), rgb(3)]),
    "animated.webp": saved(rgb(1), "WEBP", save_all=True, append_images=[rgb(2)], lossless=True),
    "plain.bmp": saved(rgb(), "BMP"),
    "lzw.tiff": saved(rgb(), "TIFF", compression="tiff_lzw"),
    "pages.tif": saved(rgb(1), "TIFF", save_all=True, append_images=[rgb(2)]),
    "grey.pgm": saved(rgb().convert("L"), "PPM"),
    "is_a.png.jpg": saved(rgb(), "PNG"),
}
DEEP = {
    "16bit.png": saved(Image.fromarray(np.arange(108, dtype=np.uint16).reshape(9, 12) * 600), "PNG"),
    "16bit.tiff": saved(Image.fromarray(np.arange(108, dtype=np.uint16).reshape(9, 12) * 600), "TIFF"),
    "float.tiff": saved(Image.fromarray(pixels(0)[..., 0].astype(np.float32) / 255), "TIFF"),
}
"""Pictures that timm's reader, Pillow's `convert`, cuts at 255: every value beyond would be white."""
BAD = {
    "zero.jpg": (b"", "the file is empty"),
    "text.jpg": (b"I am no picture, only a name.\n" * 20, "it is not a picture in one of JPEG, PNG, GIF"),
    "truncated.jpg": (encoded(size=(90, 70))[:-300], "image file is truncated"),
    "truncated.png": (encoded(kind="PNG")[:100], "."),
    "header_only.gif": (b"GIF89a", "."),
    "large.png": (png_of_size(12_000, 10_000), r"too large to be decoded safely \(12000 x 10000 pixels\)"),
    "bomb.png": (png_of_size(100_000, 100_000), "too large to be decoded safely"),
    "float.tiff": (saved(Image.fromarray(pixels(0)[..., 0].astype(np.float32)), "TIFF"), r"float values span .*range="),
    "12bit.png": (
        saved(Image.fromarray(np.arange(108, dtype=np.uint16).reshape(9, 12)), "PNG"),
        "16-bit values end at 107 ",
    ),
    "bands.tif": (b"II*\0\x08\0\0\0" + bytes(40), "TIFF of a kind that Pillow does not read"),
    "phone.jpg": (b"\0\0\0\x18ftypheic" + bytes(40), "it is HEIC"),
    "scan.png": (bytes(128) + b"DICM" + bytes(40), "it is DICOM"),
    "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 22883376\n", "git lfs pull"),
    "page.jpg": (b"\n<!DOCTYPE html><html><body>429</body></html>", "it is a web page, not a picture"),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG or other XML"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not a picture"),
}


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("name", list(ODD_BUT_GOOD))
def test_odd_pictures_are_decoded_as_timm_decodes_them(name, tmp_path):
    root = as_folder({f"class/{name}": ODD_BUT_GOOD[name]}, tmp_path)

    ours = open_dataset(root).read(0)
    theirs, _ = timm.data.ImageDataset(root, reader=OnlyFile(tmp_path / "class" / name))[0]

    assert ours.mode == theirs.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


class OnlyFile:
    """Reader for timm that knows one file, whatever its suffix."""

    def __init__(self, path):
        self.path = path

    def __getitem__(self, index):
        return self.path.open("rb"), 0

    def __len__(self):
        return 1


def test_a_picture_is_not_turned_by_its_exif():
    assert decode(rotated_by_exif(), "x").size == (12, 9)


def test_the_first_frame_of_an_animation_is_its_picture():
    alone = decode(saved(rgb(1), "GIF"), "x")

    np.testing.assert_array_equal(np.asarray(decode(ODD_BUT_GOOD["animated.gif"], "x")), np.asarray(alone))


@pytest.mark.parametrize("name", list(BAD))
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_decoded_is_refused_with_path_and_reason(name, tmp_path):
    content, reason = BAD[name]
    root = as_folder({f"class/{name}": content}, tmp_path)

    with pytest.raises(UnreadableSampleError, match=f"cannot read 'class/{name}': .*{reason}.*--on-error skip"):
        open_dataset(root).read(0)


def test_a_limit_that_the_user_lifts_is_lifted(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with (
        pytest.raises(UnreadableSampleError, match="108 pixels|12 x 9 pixels"),
        warnings.catch_warnings(action="ignore"),
    ):
        decode(encoded(), "x")

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(encoded(), "x").size == (12, 9)


def test_decoding_leaves_the_warning_filters_of_all_threads_alone():
    stop = threading.Event()
    seen = set()

    def watch():
        while not stop.is_set():
            seen.add((id(warnings.filters), len(warnings.filters)))
            time.sleep(0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: decode(ODD_BUT_GOOD["palette_transparent.png"], "x"), range(400)))
    stop.set()
    watcher.join()

    assert len(seen) == 1


def test_a_palette_with_transparency_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(ODD_BUT_GOOD["palette_transparent.png"], "x").mode == "RGB"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_corrupted_bytes_are_decoded_or_refused_and_nothing_else(kind):
    draw = random.Random(kind)
    whole = encoded(3, kind, size=(40, 30))

    for _ in range(250):
        content = corrupted(whole, draw)
        try:
            assert decode(content, "x").mode == "RGB"
        except UnreadableSampleError as error:
            assert error.reason
            assert " at 0x" not in error.reason, "a store must not hold an address: two runs would differ"


def corrupted(whole: bytes, draw: random.Random) -> bytes:
    content = bytearray(whole)
    for _ in range(draw.choice((1, 2, 8, 40))):
        content[draw.randrange(len(content))] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
    if draw.random() < 0.3:
        del content[draw.randrange(len(content)) :]
    if draw.random() < 0.2:
        place = draw.randrange(len(content) + 1)
        content[place:place] = draw.randbytes(draw.randrange(20))
    return bytes(content)
