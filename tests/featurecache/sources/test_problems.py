"""Every message about a picture names it: failures of transforms, too little memory, shapes that would fill it, notes."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from featurecache.datasets import open_dataset
from featurecache.errors import BackboneError, PictureMemoryError, UnreadableSampleError
from featurecache.progress import Stopwatch
from featurecache.sources.images import decoded, grid
from featurecache.sources.live import LiveImages
from tests.featurecache.datasets.pictures import as_folder, encoded
from tests.featurecache.sources.readers import picture
from tests.featurecache.sources.test_images import ODD, SIDE, backbone, dataset, decode, prepared, transform_of

LONG = (60_000, 1)
USUAL = transforms.Compose(
    [transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.ToTensor(), transforms.Normalize(**ODD)]
)


def drawn(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (9, 90, 200))


@pytest.mark.parametrize("size", [LONG, (1, 60_000), (257 * 4, 4)])
@pytest.mark.parametrize("crop", [{}, {"crop_pct": 1.0}])
def test_a_picture_that_would_become_enormous_is_refused_by_name_and_skipped_where_asked(size, crop):
    data = dataset(3, lambda row: drawn(size) if row == 1 else picture(row))
    transform, batches = transform_of(**crop), [range(3)]

    with pytest.raises(UnreadableSampleError, match=rf"'1': it is {size[0]} x {size[1]} pixels, longer than 256 times"):
        list(decode(data, batches, transform=transform))
    ((_, images, skipped),) = decode(data, batches, transform=transform, on_error="skip")

    assert list(skipped) == [1] and not images[1].any()
    assert torch.equal(images[2], transform(picture(2)))


@pytest.mark.parametrize("size", [(256 * 8, 8), (5, 5 * 256)])
def test_a_long_picture_within_the_limit_is_what_its_transform_makes_of_it(size):
    assert torch.equal(prepared(USUAL, picture(size=size)), USUAL(picture(size=size)))


def test_a_transform_that_pads_names_the_picture_that_it_cannot_take():
    data = dataset(1, lambda row: drawn(LONG))

    with pytest.raises(UnreadableSampleError, match="'0': the transform fails on it .*60000 x 1 pixels"):
        list(decode(data, [range(1)], transform=transform_of(crop_mode="border")))


def test_a_transform_that_squashes_takes_any_shape():
    squash = transform_of(crop_mode="squash")

    assert torch.equal(prepared(squash, drawn(LONG)), squash(drawn(LONG)))


def test_a_long_jpeg_is_refused_by_the_fast_decoder_too(tmp_path):
    pytest.importorskip("simplejpeg", reason="needs simplejpeg: pip install featurecache[fast]")
    data = open_dataset(as_folder({"a/rule.jpg": encoded(size=(60_000, 1)), "a/x.jpg": encoded()}, tmp_path))
    running = decoded(backbone(USUAL), data, [range(2)], Stopwatch(), on_error="skip", decoder="simplejpeg")

    ((_, _, skipped),) = running

    assert list(skipped) == [0] and "60000 x 1 pixels" in skipped[0]


def failing_with(error: Exception):
    def transform(image: Image.Image) -> torch.Tensor:
        if image.size == (7, 5):
            raise error
        return torch.zeros(3, SIDE, SIDE)

    return transform


DATA = dataset(3, lambda row: picture(row, (7, 5) if row == 1 else (50, 41)))


def test_a_picture_that_its_transform_cannot_take_is_named_with_its_size_and_skipped_where_asked():
    transform = failing_with(ValueError("padding is too large"))

    with pytest.raises(
        UnreadableSampleError,
        match=r"'1': the transform fails on it \(ValueError: padding is too large\), .*7 x 5 pixels",
    ):
        list(decode(DATA, [range(3)], transform=transform))
    ((_, _, skipped),) = decode(DATA, [range(3)], transform=transform, on_error="skip")
    assert list(skipped) == [1]


def test_too_little_memory_is_said_with_the_picture_and_never_skipped():
    with pytest.raises(
        PictureMemoryError, match="not enough memory for '1', a picture of 7 x 5 pixels. Shrink or remove it"
    ):
        list(decode(DATA, [range(3)], transform=failing_with(MemoryError()), on_error="skip"))


def test_a_transform_of_another_size_is_told_with_the_picture():
    with pytest.raises(BackboneError, match=r"^'0': the transform of the backbone gives \(3, 7, 7\)"):
        list(decode(DATA, [range(3)], transform=lambda image: torch.zeros(3, 7, 7), on_error="skip"))


def icon(number: int) -> bytes:
    values = np.zeros((20, 20, 4), np.uint8)
    values[number : number + 9, 3:9, 3] = 255
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def icons(tmp_path):
    files = {f"icon/{number}.png": icon(number) for number in range(5)}
    return as_folder({**files, "photo/0.png": encoded(kind="PNG")}, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_with_content_in_their_alpha_alone_are_named_once_with_the_way_out(icons, caplog, workers):
    data = open_dataset(icons)

    found = list(decoded(backbone(USUAL), data, list(grid(range(6), 2)), Stopwatch(), on_error="stop", workers=workers))

    assert not any(skipped for _, _, skipped in found)
    (said,) = [record.message for record in caplog.records if "alpha" in record.message]
    assert said.startswith(
        "5 pictures have one colour everywhere and a shape in the alpha channel alone: 'icon/0.png', "
    )
    assert "DATA?alpha=white" in said


def test_a_ground_shows_them(icons, caplog):
    data = open_dataset(f"{icons}?alpha=white")

    ((_, images, _),) = decoded(backbone(USUAL), data, [range(6)], Stopwatch(), on_error="stop")

    assert "alpha" not in caplog.text and data.identity["pixels"] == {"alpha": "white"}
    assert all(torch.equal(images[0, i], USUAL(data.read(i))) and images[0, i].std() > 0.1 for i in range(5))


def test_training_on_images_names_them_too(icons, caplog):
    with caplog.at_level(logging.WARNING):
        images = LiveImages(backbone(USUAL), open_dataset(icons), batch=4)
        assert images.unreadable(np.arange(6)) == {}
        list(images.batches([np.arange(6)]))
        images.close()

    assert caplog.text.count("5 pictures have one colour everywhere") == 1


def test_what_cannot_be_read_stops_a_training_with_its_name(tmp_path):
    data = open_dataset(as_folder({"a/0.png": encoded(kind="PNG"), "a/torn.png": encoded(kind="PNG")[:80]}, tmp_path))
    images = LiveImages(backbone(USUAL), data, batch=4)

    with pytest.raises(UnreadableSampleError, match="cannot read 'a/torn.png'"):
        list(images.batches([np.arange(2)]))
    images.close(at_once=True)
