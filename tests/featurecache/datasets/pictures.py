"""Small pictures as bytes, and trees of them as folders and archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, size: tuple[int, int] = (12, 9)) -> np.ndarray:
    """Return (H, W, 3) uint8, a smooth picture that differs for every seed."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * 0.5 + seed + c) + np.cos(y * 0.7 + seed * (c + 1)) for c in range(3)]
    return ((np.stack(waves, axis=2) + 2) * 63).astype(np.uint8)


def encoded(seed: int = 0, kind: str = "JPEG", size: tuple[int, int] = (12, 9), **options: object) -> bytes:
    """Return the picture of a seed as a file of the given kind."""
    file = io.BytesIO()
    Image.fromarray(pixels(seed, size)).save(file, kind, **options)
    return file.getvalue()


def tree(classes: Mapping[str, int], suffix: str = ".jpg") -> dict[str, bytes]:
    """Return relative path -> content: so many pictures in each class folder."""
    kind = {".jpg": "JPEG", ".png": "PNG"}[suffix]
    counts = [(label, number) for label, count in classes.items() for number in range(count)]
    return {f"{label}/{number:03d}{suffix}": encoded(seed, kind) for seed, (label, number) in enumerate(counts)}


def as_folder(files: Mapping[str, bytes], root: Path) -> str:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return str(root)


def as_zip(files: Mapping[str, bytes], path: Path, method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def as_tar(files: Mapping[str, bytes], path: Path, mode: str = "w") -> str:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)
