"""More than 8 bits, floats and transparency become RGB by a scale that is the same for all pictures of a data set."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from featurecache.datasets._decoding import decode, installed_formats
from featurecache.errors import DatasetError, UnreadableSampleError
from featurecache.rgb_conversion import NOTE, RgbConversion, is_rescaled

GREY = np.random.default_rng(0).integers(0, 256, (9, 12)).astype(np.uint8)
GREY[0, :2] = 0, 255


def saved(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def png16(values: np.ndarray) -> bytes:
    """Return a PNG of 16 bits from (H, W, channels) uint16, which Pillow itself cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def grey_of(content: bytes, convert: RgbConversion | None = None) -> np.ndarray:
    found = np.asarray(decode(content, "x", convert or RgbConversion()))
    assert found.ndim == 3 and (found == found[..., :1]).all()
    return found[..., 0]


WIDE = GREY.astype(np.uint16) * 257
FULL_SCALE = {
    "png": saved(WIDE, "PNG"),
    "tiff": saved(WIDE, "TIFF"),
    "compressed tiff": saved(WIDE, "TIFF", compression="tiff_lzw"),
    "big-endian tiff": saved(Image.frombytes("I;16B", (12, 9), WIDE.astype(">u2").tobytes()), "TIFF"),
    "pgm": saved(WIDE, "PPM"),
    "pgm of 12 bits": b"P5 12 9 4095\n" + np.round(GREY / 255 * 4095).astype(">u2").tobytes(),
    "jpeg 2000": saved(WIDE, "JPEG2000", irreversible=False),
    "rgb png": png16(np.repeat(WIDE[..., None], 3, 2)),
    "rgba png": png16(np.concatenate([np.repeat(WIDE[..., None], 3, 2), np.full_like(WIDE, 65535)[..., None]], 2)),
    "grey and alpha png": png16(np.stack([WIDE, np.full_like(WIDE, 65535)], 2)),
    "float tiff": saved((GREY / 255).astype(np.float32), "TIFF"),
    "32-bit tiff of 8-bit values": saved(GREY.astype(np.int32), "TIFF"),
    "8 bits": saved(GREY, "PNG"),
    "8-bit tiff": saved(GREY, "TIFF"),
}


@pytest.mark.parametrize("name", FULL_SCALE)
def test_a_picture_of_any_depth_is_the_picture_of_8_bits(name):
    np.testing.assert_array_equal(grey_of(FULL_SCALE[name]), GREY)


def test_a_tiff_of_12_bits_is_scaled_by_what_it_holds():
    values = np.round(GREY / 255 * 4095).astype(np.uint16)
    packed = "".join(f"{value:012b}" for value in values.ravel())
    content = int(packed, 2).to_bytes(len(packed) // 8, "big")
    tags = {256: 12, 257: 9, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 12 * 9 + 4, 277: 1, 278: 9, 279: len(content)}
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in tags.items())

    np.testing.assert_array_equal(grey_of(b"II*\0\x08\0\0\0" + directory + bytes(4) + content), GREY)


@pytest.mark.parametrize("end", [255, 1023, 4095])
def test_few_bits_in_16_are_refused_and_read_with_their_range(end):
    content = saved(np.round(GREY.astype(np.float64) / 255 * end).astype(np.uint16), "PNG")

    with pytest.raises(
        UnreadableSampleError,
        match=rf"16-bit values end at {end} of 65535, .*range=0\.\.4095 for 12",
    ):
        decode(content, "x")

    np.testing.assert_array_equal(grey_of(content, RgbConversion((0, end))), GREY)
    assert grey_of(content, RgbConversion((0, 65535))).max() == round(end / 257)


def test_16_bit_colour_that_is_dark_is_refused_and_cannot_follow_a_range():
    content = png16(np.repeat(GREY.astype(np.uint16)[..., None] * 16, 3, 2))

    with pytest.raises(UnreadableSampleError, match="nearly black.*only the upper 8 bits are decoded"):
        decode(content, "x")
    with pytest.raises(UnreadableSampleError, match="range= cannot be followed"):
        decode(content, "x", RgbConversion((0, 4095)))
    assert np.asarray(decode(content, "x", RgbConversion((0, 65535)))).max() == 15


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (GREY.astype(np.float32), r"float values span 0 to 255, .*range=0\.\.255"),
        (GREY.astype(np.float32) * -4 - 1, "float values span -1021 to -1"),
        (np.where(GREY == 0, np.nan, GREY / 255).astype(np.float32), "NaN or infinite"),
        (GREY.astype(np.int32) * 1000, r"32-bit values span 0 to 255000.*range="),
        (GREY.astype(np.int32) - 1024, "32-bit values span -1024 to -769"),
    ],
)
def test_values_without_a_scale_are_refused_with_what_was_seen(values, message):
    with pytest.raises(UnreadableSampleError, match=message):
        decode(saved(values, "TIFF"), "x")


def test_a_range_maps_its_ends_to_black_and_white_and_clips_what_lies_beyond():
    values = np.array([[-2000, -1000, -300, 400, 900]], np.int32)

    assert grey_of(saved(values, "TIFF"), RgbConversion((-1000, 400))).tolist() == [[0, 0, 128, 255, 255]]


def test_a_range_leaves_8_bits_alone():
    np.testing.assert_array_equal(grey_of(saved(GREY, "PNG"), RgbConversion((0, 4095))), GREY)


def test_black_16_bit_pictures_are_black():
    assert grey_of(saved(np.zeros((4, 4), np.uint16), "PNG")).max() == 0


@pytest.mark.parametrize(
    ("name", "is_so"),
    [
        ("png", True),
        ("tiff", True),
        ("float tiff", True),
        ("rgb png", False),
        ("32-bit tiff of 8-bit values", False),
        ("8 bits", False),
    ],
)
def test_only_pictures_that_older_versions_cut_at_255_are_rescaled(name, is_so):
    assert is_rescaled(FULL_SCALE[name], installed_formats()) is is_so


SHAPE = np.where(GREY > 127, 255, 0).astype(np.uint8)


def transparent(mode: str, colour: int = 0) -> bytes:
    """Return a picture of one colour, with a shape in its alpha channel."""
    values = np.full((9, 12, 4), colour, np.uint8)
    values[..., 3] = SHAPE
    image = Image.fromarray(values)
    if mode == "P":
        palette = Image.fromarray((SHAPE > 0).astype(np.uint8), "L").convert("P")
        palette.putpalette([colour] * 6)
        return saved(palette, "PNG", transparency=bytes([0, 255]))
    return saved(image.convert(mode), "PNG")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_shape_in_the_alpha_channel_alone_is_noted_and_a_ground_shows_it(mode):
    content = transparent(mode)

    dropped = decode(content, "x")
    laid = grey_of(content, RgbConversion(alpha="white"))

    assert "alpha channel alone" in dropped.info[NOTE] and np.asarray(dropped).max() == 0
    np.testing.assert_array_equal(laid, 255 - SHAPE)
    assert NOTE not in decode(content, "x", RgbConversion(alpha="white")).info


def test_a_white_shape_shows_on_black():
    np.testing.assert_array_equal(grey_of(transparent("RGBA", 255), RgbConversion(alpha="black")), SHAPE)


@pytest.mark.parametrize("name", ["colours", "opaque", "transparent", "no alpha"])
def test_a_picture_with_colours_or_without_a_shape_is_not_noted(name):
    values = np.zeros((9, 12, 4), np.uint8)
    values[..., 3] = {"colours": SHAPE, "opaque": 255, "transparent": 0, "no alpha": 255}[name]
    if name == "colours":
        values[..., 0] = GREY
    image = Image.fromarray(values)

    assert NOTE not in decode(saved(image.convert("RGB") if name == "no alpha" else image, "PNG"), "x").info


def test_a_picture_in_memory_keeps_its_transparency():
    palette = saved(Image.fromarray(GREY).convert("P"), "PNG", transparency=bytes(range(256)))
    image = Image.open(io.BytesIO(palette))

    RgbConversion()(image)

    assert image.info["transparency"] == bytes(range(256))


@pytest.mark.parametrize("scale", [(0.0, 4095.0), (-1000.5, 1e-3), None])
@pytest.mark.parametrize("alpha", ["drop", "white"])
def test_query_and_identity_give_the_conversion_back(scale, alpha):
    convert = RgbConversion(scale, alpha)
    options = dict(pair.split("=") for pair in convert.query.split("&") if pair)

    assert RgbConversion.parse(options, "x") == convert
    assert RgbConversion.from_identity({"pixels": convert.identity}) == convert


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"range": "4095"}, r"range=4095\. Give LOW\.\.HIGH"), ({"range": "9..1"}, r"Give LOW\.\.HIGH"),
        ({"range": "0..inf"}, r"Give LOW\.\.HIGH"), ({"alpha": "pink"}, "alpha=pink. Give one of drop, white, black"),
    ],
)  # fmt: skip
def test_options_of_another_form_are_refused(options, message):
    with pytest.raises(DatasetError, match=message):
        RgbConversion.parse(options, "x")
