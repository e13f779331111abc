"""The ImageFolder layout: from relative paths to rows, classes and splits, wherever the files lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os.path import splitext

import numpy as np

from featurecache.datasets import Fingerprint, ImageDataset, RowTable
from featurecache.datasets._fingerprint import Reader, check_one_class, fingerprint_of, measured
from featurecache.datasets._splits import divided, report_gaps
from featurecache.errors import DatasetError
from featurecache.features import Task

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
    task: Task | None,
    fingerprint: Fingerprint,
    reader: Callable[[list[str]], Reader],
) -> ImageDataset:
    """Return the data set of (relative path, size) pairs; `reader` makes `read` from the paths in row order.

    Raises:
        DatasetError: there is no image, a name is not text, the folders mix several layouts, or folders cannot give
            labels of that task.
    """
    check_one_class(task, spec)
    found = sorted(files)
    paths = [path for path, _ in found]
    _check_paths(paths, spec)
    given, labels = _arranged(paths, spec)
    classes = tuple(sorted({label for label in labels if label is not None}))
    number = {label: i for i, label in enumerate(classes)}
    target = np.array([-1 if label is None else number[label] for label in labels], dtype=np.int64)
    blank = [""] * len(paths)
    split, rule = divided(paths, blank, given, target, split_seed)
    if classes:
        report_gaps(classes, target, split, spec)
    read = reader(paths)
    measures = measured(fingerprint, [size for _, size in found], read)
    identity = {
        "name": name,
        "fingerprint": fingerprint_of(fingerprint, paths, measures, target, classes),
        "rows": len(paths),
        "split_rule": rule,
    }
    return ImageDataset(
        name=name,
        spec=spec,
        table=RowTable(sample_id=paths, target=target, split=split, domain=blank, group=blank),
        class_names=classes,
        task="classification",
        read=read,
        identity=identity,
        content=read.content,
        measures=measures,
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
