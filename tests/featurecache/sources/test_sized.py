"""Resize and crop without torchvision give what torchvision gives, to the bit, or are not taken for it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomCrop, Resize

from featurecache.sources._sized import Sized, sized
from tests.featurecache.sources.readers import picture

SIZES = ((50, 41), (41, 50), (33, 33), (32, 97), (97, 31), (200, 133))
CASES = {
    "resize": [Resize(32)],
    "resize and crop": [Resize(36), CenterCrop(32)],
    "an odd crop that is not square": [Resize(37), CenterCrop((30, 21))],
    "bicubic": [Resize(34, InterpolationMode.BICUBIC), CenterCrop(32)],
}


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_it_makes_the_same_picture_here_and_in_another_process(steps, mode):
    whole = Compose(steps)

    made = sized(steps, whole)
    sent = pickle.loads(pickle.dumps(made))

    assert isinstance(made, Sized)
    for size in SIZES:
        taken = picture(3, size, mode)
        for found in (made(taken), sent(taken)):
            assert np.array_equal(np.asarray(found), np.asarray(whole(taken)))


@pytest.mark.parametrize(
    "steps",
    [
        [], [CenterCrop(32)], [Resize((32, 32))], [Resize(32, max_size=40)], [Resize(32), CenterCrop(40)],
        [Resize(32), RandomCrop(32)], [Resize(32, InterpolationMode.NEAREST_EXACT)],
    ],
    ids=str,
)  # fmt: skip
def test_other_steps_are_left_to_the_library(steps):
    assert sized(steps, Compose(steps)) is None


def test_steps_that_do_something_else_than_they_say_are_left_to_the_library():
    class Flipping(Compose):
        def __call__(self, taken: Image.Image) -> Image.Image:
            return super().__call__(taken).transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    assert sized([Resize(32)], Flipping([Resize(32)])) is None
