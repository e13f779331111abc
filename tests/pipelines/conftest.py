"""A store made by the real path from real pictures, once; the pictures are deleted before any test reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from save_features import SaveFeaturesConfig
from save_features import run as extract

ROWS = 240


@pytest.fixture(scope="session")
def digits_store(tmp_path_factory) -> Path:
    """Return a store of `demo` over the first handwritten digits, layers 3 to 5, cls and mean; without its images."""
    place, digits = tmp_path_factory.mktemp("digits"), load_digits()
    for number in range(ROWS):
        folder = place / "images" / f"digit {digits.target[number]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(folder / f"{number:03d}.png")
    store = place / "digits.zarr"
    extract(
        SaveFeaturesConfig(
            data=str(place / "images"), backbone="demo", out=store, layers="3-5", tokens="cls+mean", quiet=True
        )
    )
    shutil.rmtree(place / "images")
    return store
