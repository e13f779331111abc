"""Arrays and tensors are the pictures that they were made of, one or a batch, or are refused in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from featurecache.errors import ConfigError
from pipelines.predicting.gathering import gathered
from pipelines.predicting.pixel_arrays import list_pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3)).astype(np.uint8)
"""Five RGB pictures, 6 rows high and 7 columns wide."""
FLOATS = (PIXELS / 255).astype(np.float32)
FIRST = torch.from_numpy(PIXELS).movedim(-1, 1)
"""The same with channels first."""


@pytest.mark.parametrize(
    "given",
    [
        PIXELS,
        list(PIXELS),
        FLOATS,
        FLOATS.astype(np.float64),
        FIRST,
        list(FIRST),
        FIRST / 255,
        (FIRST / 255).double(),
        [Image.fromarray(pixels) for pixels in PIXELS],
        [PIXELS[0], FIRST[1], Image.fromarray(PIXELS[2]), FLOATS[3:]],
        (pixels for pixels in PIXELS),
    ],
    ids=lambda given: type(given).__name__,
)
def test_one_picture_or_a_batch_in_any_form_is_the_same_pictures(given):
    read = gathered(given)

    assert len(read) == 5
    for row, pixels in enumerate(PIXELS):
        np.testing.assert_array_equal(np.asarray(read.read(row).convert("RGB")), pixels)


@pytest.mark.parametrize(
    "given", [PIXELS[0], FIRST[0], FIRST[:1], Image.fromarray(PIXELS[0])], ids=lambda g: str(type(g))
)
def test_one_picture_needs_no_list(given):
    (picture,) = list_pictures(given)

    np.testing.assert_array_equal(np.asarray(picture), PIXELS[0])


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        (PIXELS[0, ..., 0], "L"),
        (PIXELS[0, ..., :1], "L"),
        (FIRST[0, :1], "L"),
        (FIRST[0, 0], "L"),
        (np.dstack([PIXELS[0], PIXELS[0, ..., 0]]), "RGBA"),
        ((FIRST[0] / 255).to(torch.float16)[:, :2, :2], "RGB"),
        ((FIRST[0] / 255).to(torch.bfloat16), "RGB"),
    ],
)
def test_grey_pictures_and_pictures_with_alpha_are_taken(given, mode):
    assert [picture.mode for picture in list_pictures(given)] == [mode]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (PIXELS.astype(np.uint16), "holds uint16: give uint8"),
        (PIXELS[0].astype(np.int64), "holds int64: give uint8"),
        (PIXELS[0] > 100, "holds bool: give uint8"),
        (PIXELS[0] * 1.0, "floats from 0 to 255: give them from 0 to 1.*give uint8"),
        (FIRST[0] / 127.5 - 1, "floats from -1 to 1.*do not normalise"),
        (np.full((4, 4, 3), np.nan), "floats from nan"),
        (np.full((4, 4, 3), np.inf), "floats from inf"),
        (np.zeros((4, 4, 2), np.uint8), "no picture.*C 1, 3 or 4"),
        (np.moveaxis(PIXELS, -1, 1), r"shape \(5, 3, 6, 7\) is no picture.*\(H, W, C\)"),
        (torch.zeros(6, 7, 3, dtype=torch.uint8), r"shape \(6, 7, 3\) is no picture.*\(C, H, W\)"),
        (np.zeros((1, 2, 3, 4, 3), np.uint8), "no picture"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no picture"),
        (np.zeros(5, np.uint8), "no picture"),
        (3, "int is no picture: give PIL images .*paths"),
        (None, "NoneType is no picture"),
        (b"abc", "^bytes is no picture.*io.BytesIO"),
        ({"image": PIXELS[0]}, "^dict is no picture"),
        ([PIXELS[0], {"image": PIXELS[1]}, 2.5], "(?s)2 problems.*item 1: dict is no.*item 2: float is no"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(given, said):
    with pytest.raises(ConfigError, match=said):
        list_pictures(given)


def test_an_array_of_paths_is_its_paths(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")

    read = gathered(np.array([str(tmp_path / "a.png")]))

    assert read.table.sample_id == [str(tmp_path / "a.png")]


def test_no_picture_at_all_is_refused():
    with pytest.raises(ConfigError, match="no image to look at"):
        gathered([])
