"""JPEG files that try a decoder: smooth light with grain, noise, hard edges; in every shape."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageFile

KINDS = ("photograph", "noise", "edges")


def drawn(kind: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Return an RGB picture of that kind, (width, height)."""
    random, (width, height) = np.random.default_rng(seed), size
    if kind == "noise":
        pixels = random.integers(0, 256, (height, width, 3))
    elif kind == "edges":
        squares = random.integers(0, 2, (-(-height // 7), -(-width // 7), 3)) * 255
        pixels = np.kron(squares, np.ones((7, 7, 1)))[:height, :width]
    else:
        light = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        pixels = np.asarray(light) + random.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(
    kind: str = "photograph", size: tuple[int, int] = (60, 45), mode: str = "RGB", seed: int = 0, **options: Any
) -> bytes:
    """Return such a picture as a JPEG file."""
    file, before = io.BytesIO(), ImageFile.MAXBLOCK
    try:
        ImageFile.MAXBLOCK = 2**24  # Pillow guesses too little for progressive noise
        drawn(kind, size, seed).convert(mode).save(file, "JPEG", **{"quality": 90, **options})
    finally:
        ImageFile.MAXBLOCK = before
    return file.getvalue()
