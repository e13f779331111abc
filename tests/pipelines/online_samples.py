"""Small online trainings for tests: generated pictures that can be told apart, a tiny backbone with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.train_online import TrainOnlineConfig

TINY: dict[str, Any] = {"backbone": "timm:test_vit", "weights": "random:0", "image_size": 32}
CLASSES = ("cat", "dog", "owl")


def photos(folder: Path, each: int = 16, noise: int = 100) -> Path:
    """Write so many noisy pictures of each class, told apart by their shade."""
    draw = np.random.default_rng(0)
    for shade, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = draw.integers(0, noise, (36, 40, 3)) + 30 * shade
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02d}.png")
    return folder


def online(data: Path, out: Path, **changes: Any) -> TrainOnlineConfig:
    """Return the config of a short training."""
    settings = {"epochs": 2, "batch_size": 8, "quiet": True, "decode_threads": 1, **TINY, **changes}
    return TrainOnlineConfig(data=str(data), out=out, **settings)


def words(data: Path, out: Path, **changes: Any) -> list[str]:
    """Return the same as a command line."""
    settings = {"epochs": 2, "batch_size": 8, "decode_threads": 1, **TINY, **changes}
    options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["train-online", str(data), "--out", str(out), *options]
