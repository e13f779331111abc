"""Coloured JPEG files, a store of their features and runs on it: what verbs about images and runs are tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from save_features import SaveFeaturesConfig
from save_features import run as extract

CLASSES = ("blue", "green", "red")
CHANNEL = {"red": 0, "green": 1, "blue": 2}
SIZES = ((40, 48), (61, 33), (32, 32))
"""(height, width) of the pictures, in turn."""


def picture(name: str, number: int = 0) -> Image.Image:
    """Return a noisy picture of a colour; any other name gives grey."""
    height, width = SIZES[number % len(SIZES)]
    pixels = np.random.default_rng(number).integers(0, 90, (height, width, 3))
    if name in CHANNEL:
        pixels[..., CHANNEL[name]] += 90
    return Image.fromarray(pixels.astype(np.uint8))


def pictures(folder: Path, counts: dict[str, int], *, first: int = 0) -> Path:
    """Write pictures of every named class below `folder`; return it."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            picture(name, number).save(folder / name / f"{number:02d}.jpg")
    return folder


def store_of(photos: Path, out: Path, **settings: object) -> Path:
    """Write the features of pictures by the demo backbone; return the store."""
    extract(SaveFeaturesConfig(**{"data": str(photos), "backbone": "demo", "out": out, "quiet": True, **settings}))
    return out


def place_with_runs(place: Path, **heads: dict[str, object]) -> Path:
    """Make `photos`, `store.zarr` and one run a head in a folder; return it."""
    pictures(place / "photos/train", dict.fromkeys(CLASSES, 12))
    pictures(place / "photos/test", dict.fromkeys(CLASSES, 6), first=50)
    store = store_of(place / "photos", place / "store.zarr")
    for name, settings in heads.items():
        train(TrainHeadConfig(**{"store": store, "head": name, "out": place / name, "quiet": True, **settings}))
    return place
