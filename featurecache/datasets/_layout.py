"""The ImageFolder layout: from relative paths to rows, classes and splits, wherever the files lie."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

import numpy as np
from PIL.Image import Image

from featurecache.datasets import ImageDataset, RowTable
from featurecache.datasets._splits import VAL_SHARE, automatic, draw_from
from featurecache.errors import DatasetError

log = logging.getLogger("featurecache")

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def is_image(path: str) -> bool:
    """Return whether a relative path names an image that is not hidden."""
    parts = PurePosixPath(path)
    return parts.suffix.lower() in SUFFIXES and not any(p.startswith((".", "__MACOSX")) for p in parts.parts)


def dataset_of(
    files: Iterable[tuple[str, int]],
    *,
    name: str,
    spec: str,
    split_seed: int,
    reader: Callable[[list[str]], Callable[[int], Image]],
) -> ImageDataset:
    """Return the data set of (relative path, size) pairs; `reader` makes `read` from the paths in row order.

    Raises:
        DatasetError: there is no image, or the folders mix several layouts.
    """
    found = sorted(files)
    if not found:
        raise DatasetError(f"{spec} holds no image. Known suffixes: {', '.join(sorted(SUFFIXES))}.")
    paths = [path for path, _ in found]
    parts = [PurePosixPath(path).parts for path in paths]
    has_splits = all(len(p) > 2 and p[0].lower() in SPLIT_FOLDERS for p in parts)
    depth = 1 if has_splits else 0
    labels = [p[depth] if len(p) > depth + 1 else None for p in parts]
    loose = [path for path, label in zip(paths, labels, strict=True) if label is None]
    if loose and len(loose) < len(paths):
        raise DatasetError(
            f"{spec} mixes images in class folders with {len(loose)} images that lie in none, such as {loose[0]!r}. "
            "Put every image into a class folder, or none."
        )
    classes = tuple(sorted({label for label in labels if label is not None}))
    number = {label: i for i, label in enumerate(classes)}
    target = np.array([-1 if label is None else number[label] for label in labels], dtype=np.int64)
    split, rule = _splits(paths, parts, target, has_splits, split_seed)
    _report(classes, target, split, spec)
    table = RowTable(sample_id=paths, target=target, split=split, domain=[""] * len(paths), group=[""] * len(paths))
    identity = {
        "name": name,
        "fingerprint": fingerprint(found, target, classes),
        "rows": len(paths),
        "split_rule": rule,
    }
    return ImageDataset(
        name=name,
        spec=spec,
        table=table,
        class_names=classes,
        task="classification",
        read=reader(paths),
        identity=identity,
    )


def _splits(
    paths: list[str], parts: list[tuple[str, ...]], target: np.ndarray, has_splits: bool, seed: int
) -> tuple[list[str], str]:
    if not has_splits:
        return automatic(paths, target, seed), f"digest 80/20, val 10 % of train, seed {seed}"
    split = [SPLIT_FOLDERS[p[0].lower()] for p in parts]
    if "val" in split:
        return split, "folders"
    draw_from(split, "train", "val", paths, target, seed, VAL_SHARE)
    return split, f"folders, val 10 % of train, seed {seed}"


def _report(classes: tuple[str, ...], target: np.ndarray, split: list[str], spec: str) -> None:
    if not classes:
        return
    seen = Counter(zip(target.tolist(), split, strict=True))
    for number, label in enumerate(classes):
        where = [name for name in ("train", "val", "test") if seen[number, name]]
        if "train" not in where or "test" not in where:
            log.warning("%s: class %r is in %s only", spec, label, " and ".join(where))


def fingerprint(files: list[tuple[str, int]], target: np.ndarray, classes: tuple[str, ...]) -> str:
    """Return a digest over ids, sizes, targets and class names, in row order."""
    digest = hashlib.blake2b(digest_size=16)
    for (path, size), label in zip(files, target.tolist(), strict=True):
        digest.update(f"{path}\0{size}\0{label}\n".encode())
    digest.update("\0".join(classes).encode())
    return digest.hexdigest()
