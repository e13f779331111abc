"""The ImageFolder layout: from relative paths to rows, classes and splits, wherever the files lie."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from os.path import splitext

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from featurecache.datasets import SPLITS, ImageDataset, RowTable
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


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of that name is none of the data."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(path: str) -> bool:
    """Return whether a relative path names an image that is not hidden."""
    parts = path.split("/")
    return splitext(parts[-1])[1].lower() in SUFFIXES and not any(is_hidden(part) for part in parts)


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
        DatasetError: there is no image, a name is not text, or the folders mix several layouts.
    """
    found = sorted(files)
    paths = [path for path, _ in found]
    _check_paths(paths, spec)
    given, labels = _arranged(paths, spec)
    classes = tuple(sorted({label for label in labels if label is not None}))
    number = {label: i for i, label in enumerate(classes)}
    target = np.array([-1 if label is None else number[label] for label in labels], dtype=np.int64)
    split, rule = _splits(paths, given, target, split_seed)
    if classes:
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


def _check_paths(paths: list[str], spec: str) -> None:
    if not paths:
        raise DatasetError(f"{spec} holds no image. Known suffixes: {', '.join(sorted(SUFFIXES))}.")
    broken = [path for path in paths if not path.isascii() and _has_lone_surrogates(path)]
    if broken:
        raise DatasetError(
            f"{spec} holds {len(broken)} names that are not UTF-8, such as {broken[0]!r}. Sample ids are text: rename them."
        )


def _has_lone_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _arranged(paths: list[str], spec: str) -> tuple[list[str] | None, list[str | None]]:
    """Return the split of every path where folders give it, and its label, None where no folder gives one.

    Raises:
        DatasetError: split folders beside class folders, or images in class folders beside images in none.
    """
    parts = [path.split("/") for path in paths]
    tops = {p[0] for p in parts if len(p) > 1}
    split_tops = {top for top in tops if top.lower() in SPLIT_FOLDERS}
    has_splits = bool(tops) and split_tops == tops and all(len(p) > 1 for p in parts)
    several = len({SPLIT_FOLDERS[top.lower()] for top in split_tops}) > 1
    if several and not has_splits:  # one alone may be a class: "train" is one in several data sets
        beside = next(path for path, p in zip(paths, parts, strict=True) if len(p) == 1 or p[0] not in split_tops)
        raise DatasetError(
            f"{spec} mixes the split folders {', '.join(sorted(split_tops))} with {beside!r} beside them. "
            "Put every image into a split folder, or none."
        )
    depth = 1 if has_splits else 0
    labels = [p[depth] if len(p) > depth + 1 else None for p in parts]
    loose = [path for path, label in zip(paths, labels, strict=True) if label is None]
    if loose and len(loose) < len(paths):
        raise DatasetError(
            f"{spec} mixes images in class folders with {len(loose)} images that lie in none, such as {loose[0]!r}. "
            "Put every image into a class folder, or none."
        )
    return ([SPLIT_FOLDERS[p[0].lower()] for p in parts] if has_splits else None), labels


def _splits(
    paths: list[str], given: list[str] | None, target: npt.NDArray[np.int64], seed: int
) -> tuple[list[str], str]:
    if given is None and (target < 0).all():
        return [""] * len(paths), "none"
    if given is None:
        return automatic(paths, target, seed), f"digest 80/20, val 10 % of train, seed {seed}"
    if "val" in given or (target < 0).all():
        return given, "folders"
    draw_from(given, "train", "val", paths, target, seed, VAL_SHARE)
    return given, f"folders, val 10 % of train, seed {seed}"


def _report(classes: tuple[str, ...], target: npt.NDArray[np.int64], split: list[str], spec: str) -> None:
    """Warn of the classes that cannot be learned or cannot be tested, one line for each set of splits."""
    seen = Counter(zip(target.tolist(), split, strict=True))
    only: dict[str, list[str]] = defaultdict(list)
    for number, label in enumerate(classes):
        found = [name for name in SPLITS if seen[number, name]]
        if "train" not in found or "test" not in found:
            only[" and ".join(found)].append(repr(label))
    for where, labels in only.items():
        shown = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
        log.warning("%s: in %s only: %d of %d classes (%s)", spec, where, len(labels), len(classes), shown)


def fingerprint(files: list[tuple[str, int]], target: npt.NDArray[np.int64], classes: tuple[str, ...]) -> str:
    """Return a digest over ids, sizes, targets and class names, in row order."""
    digest = hashlib.blake2b(digest_size=16)
    for (path, size), label in zip(files, target.tolist(), strict=True):
        digest.update(f"{path}\0{size}\0{label}\n".encode())
    digest.update("\0".join(classes).encode())
    return digest.hexdigest()
