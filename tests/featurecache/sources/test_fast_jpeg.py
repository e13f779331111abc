"""The decoder simplejpeg: nearly the pixels of the exact path where it is used, and exactly those where it is not."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm.data
import torch
from PIL import Image
from torchvision import transforms

from featurecache.datasets import open_dataset
from featurecache.decoders import LARGEST_DIFFERENCE
from featurecache.errors import ConfigError, UnreadableSampleError
from featurecache.progress import Stopwatch
from featurecache.sources._fast_jpeg import fast_jpeg, pixels_of
from featurecache.sources._pixels import preparation
from featurecache.sources.images import check_feed, decoded
from featurecache.views import Views
from tests.featurecache.datasets.pictures import encoded
from tests.featurecache.sources.jpegs import KINDS, drawn, jpeg
from tests.featurecache.sources.test_images import SIDE, backbone, transform_of

pytest.importorskip("simplejpeg", reason="needs simplejpeg: pip install featurecache[fast]")

SHAPES = [(60, 45), (45, 60), (SIDE, SIDE), (7, 5), (1, 1), (300, 40), (31, 60), (640, 480), (500, 999)]
UNUSUAL = {
    "squash": {"crop_mode": "squash"},
    "border": {"crop_mode": "border"},
    "lanczos": {"interpolation": "lanczos"},
    "nearest": {"interpolation": "nearest"},
}


def folder_of(files: dict[str, bytes], root: Path):
    """Return a data set of these files in one class folder."""
    for name, content in files.items():
        (root / "one").mkdir(parents=True, exist_ok=True)
        (root / "one" / name).write_bytes(content)
    return open_dataset(root)


def images(data, decoder, transform=None, **changes):
    """Return (V, N, 3, H, W) images of all rows, and why rows are skipped."""
    given = {"on_error": "skip", "threads": 2, **changes}
    [(_, found, skipped)] = decoded(
        backbone(transform), data, [range(len(data))], Stopwatch(), decoder=decoder, **given
    )
    return found, skipped


def steps(transform, found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of two (..., 3, H, W) normalised images, in steps of 255."""
    return float(((found - expected).abs() * transform.transforms[-1].std.reshape(3, 1, 1) * 255).max())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_differ_by_at_most_what_is_promised(tmp_path, kind, interpolation):
    transform = transform_of(interpolation=interpolation)
    data = folder_of({f"{i}.jpg": jpeg(kind, size, seed=i) for i, size in enumerate(SHAPES)}, tmp_path)

    fast, exact = images(data, "simplejpeg", transform)[0], images(data, "pillow", transform)[0]

    assert steps(transform, fast, exact) <= LARGEST_DIFFERENCE + 1e-3
    assert not torch.equal(fast, exact)


@pytest.mark.parametrize("options", [{}, {"mode": "L"}, {"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_the_pixels_before_the_transform_are_those_of_pillow(options):
    content = jpeg("noise", (61, 47), **options)

    assert np.array_equal(pixels_of(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_the_transform_of_open_clip_is_a_usual_one():
    transform = open_clip.image_transform(SIDE, is_train=False)  # with steps of its own that do what timm's do
    content, fast = jpeg("photograph", (80, 50)), fast_jpeg(transform, preparation(transform))
    place = np.empty((3, SIDE, SIDE), np.float32)

    assert fast is not None
    assert fast(pixels_of(content), place)
    std = np.array(transform.transforms[-1].std).reshape(3, 1, 1)
    exact = transform(Image.open(io.BytesIO(content))).numpy()
    assert (np.abs(place - exact) * std * 255).max() <= LARGEST_DIFFERENCE + 1e-3


def test_drawn_views_are_the_same_draws(tmp_path):
    transform, views = transform_of(), Views(4, "strong", 3)
    data = folder_of({f"{i}.jpg": jpeg(seed=i, size=(90, 70)) for i in range(4)}, tmp_path)

    fast, exact = (images(data, name, transform, views=views)[0] for name in ("simplejpeg", "pillow"))

    assert fast.shape == (4, 4, 3, SIDE, SIDE)
    assert steps(transform, fast, exact) <= LARGEST_DIFFERENCE + 1e-3


def test_what_is_no_plain_jpeg_is_decoded_to_the_bit_as_by_pillow(tmp_path):
    files = {
        "a.png": encoded(0, "PNG", (50, 40)),
        "b.jpg": jpeg(mode="CMYK"),
        "c.bmp": encoded(1, "BMP", (50, 40)),
        "named wrongly.jpg": encoded(2, "PNG", (50, 40)),
        "taller than twice its width.jpg": jpeg("edges", (24, 100)),
    }
    data = folder_of(files, tmp_path)

    assert torch.equal(images(data, "simplejpeg")[0], images(data, "pillow")[0])


@pytest.mark.parametrize("changes", UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_transform_is_left_to_the_exact_path_and_that_is_said(tmp_path, changes, caplog):
    data, transform = folder_of({"a.jpg": jpeg(), "b.jpg": jpeg(size=(45, 60))}, tmp_path), transform_of(**changes)

    check_feed(backbone(transform), data, workers=0, decoder="simplejpeg")

    assert torch.equal(images(data, "simplejpeg", transform)[0], images(data, "pillow", transform)[0])
    assert "every image is decoded as with --decoder pillow" in caplog.text


@pytest.mark.parametrize(
    "steps",
    [
        [transforms.Resize(SIDE), transforms.ColorJitter(0.0), transforms.CenterCrop(SIDE)],
        [transforms.CenterCrop(SIDE), transforms.Resize(SIDE)],
        [transforms.Resize(SIDE, max_size=SIDE + 1), transforms.CenterCrop(SIDE)],
        [transforms.Resize(SIDE, antialias=False), transforms.CenterCrop(SIDE)],
        [],
    ],
    ids=["a step between", "another order", "a largest size", "no antialias", "no resize"],
)
def test_steps_that_only_look_usual_are_not_taken_for_them(steps):
    last = transform_of().transforms[-2:]
    transform = transforms.Compose([*steps, *last])

    assert fast_jpeg(transform, preparation(transform)) is None


def test_damage_is_refused_with_the_reasons_of_the_exact_path(tmp_path):
    whole = jpeg(size=(80, 60))
    files = {
        "half.jpg": whole[: len(whole) // 2], "head.jpg": whole[:30], "empty.jpg": b"", "whole.jpg": whole,
        "torn.jpg": whole[:400] + bytes(100) + whole[500:], "no end.jpg": whole[:-2],
    }  # fmt: skip
    data = folder_of(files, tmp_path)

    (fast, fast_said), (exact, exact_said) = images(data, "simplejpeg"), images(data, "pillow")

    assert fast_said == exact_said
    assert len(fast_said) >= 3
    assert torch.equal(fast[0, list(fast_said)], exact[0, list(fast_said)])


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    import simplejpeg

    data = folder_of({"bomb.jpg": jpeg(size=(100, 90))}, tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8999)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("it was decoded"))

    with pytest.raises(
        UnreadableSampleError, match=r"'one/bomb\.jpg': it is too large to be decoded safely \(100 x 90"
    ):
        images(data, "simplejpeg", on_error="stop")


def test_pictures_that_are_in_no_file_go_the_exact_way():
    digits = open_dataset("digits")

    [(_, fast, _)] = decoded(
        backbone(), digits, [range(5)], Stopwatch(), on_error="stop", threads=1, decoder="simplejpeg"
    )

    expected = torch.stack([transform_of()(digits.read(row)) for row in range(5)])
    assert torch.equal(fast[0], expected)


def test_a_decoder_that_is_not_installed_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    data = folder_of({"a.jpg": jpeg()}, tmp_path)

    with pytest.raises(ConfigError, match=r"simplejpeg is not installed: pip install featurecache\[fast\]"):
        images(data, "simplejpeg")


def test_the_transform_of_every_usual_size_of_crop_is_met():
    for crop in (0.875, 0.9, 1.0):
        transform = timm.data.create_transform((3, 64, 64), crop_pct=crop, interpolation="bicubic")
        picture = drawn("photograph", (150, 101))
        fast, place = fast_jpeg(transform, preparation(transform)), np.empty((3, 64, 64), np.float32)

        assert fast is not None
        assert fast(np.array(picture), place)
        assert steps(transform, torch.from_numpy(place), transform(picture)) <= LARGEST_DIFFERENCE + 1e-3
