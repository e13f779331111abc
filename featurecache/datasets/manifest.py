"""A .csv, .tsv or .parquet table of images: `path,label[,split][,domain][,group][,sample_id]`."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from featurecache.datasets import Fingerprint, ImageDataset, RowTable
from featurecache.datasets._columns import Columns, columns_of
from featurecache.datasets._fingerprint import fingerprint_of, measured
from featurecache.datasets._labels import Labels, labels_of
from featurecache.datasets._layout import report_alike
from featurecache.datasets._manifest_options import ManifestOptions
from featurecache.datasets._query import queried
from featurecache.datasets._split_names import read_splits
from featurecache.datasets._splits import divided, report_gaps
from featurecache.datasets.image_folder import FolderReader
from featurecache.errors import DatasetError, DatasetNotFoundError
from featurecache.features import Task

SUFFIXES_LEFT_OUT = (".jpg", ".png", ".jpeg", ".JPG", ".tif", ".tiff", ".webp", ".bmp")
"""With which a missing path is tried, to say what is wrong with it."""
DRIVE = re.compile("[A-Za-z]:/")
"""Start of an absolute path of Windows."""


def open(
    spec: str, *, split_seed: int = 0, task: Task | None = None, fingerprint: Fingerprint = "sizes"
) -> ImageDataset:
    """Open the manifest at the path `spec`, which may end in the options of `_manifest_options`.

    Such as `?classes=a,b,c` (all the classes there are, in order), `label_separator=comma`, `path=filename`.
    Paths are relative to the folder of the manifest; rows are sorted by sample id, so the order of the lines is free.
    With fingerprint "names" no file is looked at, and one that is missing is found when it is read.
    """
    place, given_options = (spec, {}) if Path(spec).is_file() else queried(spec)
    options = ManifestOptions.parse(given_options, spec)
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise DatasetNotFoundError(
            f"{place} is not a file. Name a .csv, .tsv or .parquet with the columns path and label."
        )
    columns = columns_of(path, options)
    paths = [os.path.normpath(value) if value else "" for value in _portable(path.parent, columns.values["path"])]
    ids = columns.values.get("sample_id") or paths
    labels = labels_of(columns, task, options.classes, options.label_separator)
    given, problems = _given_splits(columns, labels)
    sizes = [-1] * len(paths) if fingerprint == "names" else _sizes(path.parent, paths)
    problems = [
        *_wrong_paths(columns, path.parent, paths, sizes, fingerprint),
        *_wrong_ids(columns, ids),
        *labels.problems,
        *problems,
    ]
    if problems:
        raise DatasetError(f"{path} cannot be used as it is:\n  - " + "\n  - ".join(problems))
    return _dataset(
        columns, labels, np.argsort(np.array(ids, dtype=object), kind="stable").tolist(),
        path=path, spec=f"{path}{_query(given_options)}",
        paths=paths, ids=ids, given=given, sizes=sizes, split_seed=split_seed, fingerprint=fingerprint,
    )  # fmt: skip


def _dataset(
    columns: Columns, labels: Labels, order: list[int], *, path: Path, spec: str, paths: list[str],
    ids: Sequence[str], given: list[str] | None, sizes: list[int], split_seed: int, fingerprint: Fingerprint,
) -> ImageDataset:  # fmt: skip
    def sorted_rows(values: Sequence[str] | None) -> list[str]:
        return [values[row] for row in order] if values else [""] * len(order)

    names, target = sorted_rows(ids), labels.target[order]
    domain, group = (sorted_rows(columns.values.get(name)) for name in ("domain", "group"))
    said = sorted_rows(given)
    strata = target if labels.task == "classification" else np.where(labels.labelled[order], 0, -1)
    split, rule = divided(
        names, group, said if given else None, strata.astype(np.int64), split_seed, by="given", spec=str(path)
    )
    if labels.task != "regression" and labels.labelled.any():
        report_alike(labels.names, str(path))
        report_gaps(labels.names, target, split, str(path))
    read = FolderReader(path.parent, sorted_rows(paths))  # what cannot be read is named by its path
    measures = measured(fingerprint, [sizes[row] for row in order], read)
    beyond = [
        json.dumps([measure, *row]) if any(row) else measure
        for measure, *row in zip(measures, said, domain, group, strict=True)
    ]
    return ImageDataset(
        name=path.stem,
        spec=spec,
        table=RowTable(sample_id=names, target=target, split=split, domain=domain, group=group),
        class_names=labels.names,
        task=labels.task,
        read=read,
        content=read.content,
        measures=beyond,
        identity={
            "name": path.stem,
            "fingerprint": fingerprint_of(fingerprint, names, beyond, target, labels.names),
            "rows": len(names),
            "split_rule": rule,
        },
    )


def _query(options: Mapping[str, str]) -> str:
    return f"?{'&'.join(f'{key}={value}' for key, value in options.items())}" if options else ""


def _portable(root: Path, written: Sequence[str]) -> Sequence[str]:
    """Return paths with slashes, where they are written with the backslashes of Windows and no file is called so."""
    first = next((path for path in written if "\\" in path), None)
    if first is None or _size(root, first) >= 0:
        return written
    return [path.replace("\\", "/") for path in written]


def _given_splits(columns: Columns, labels: Labels) -> tuple[list[str] | None, list[str]]:
    """Return the splits in our words, None where there are none, and what is wrong with them."""
    words = columns.values.get("split", [])
    if not any(words):
        return None, []
    known_words = read_splits(set(words))
    found = [known_words.get(word, "") for word in words]
    unknown = [(row, word) for row, word in enumerate(words) if word and not found[row]]
    absent = [(row, columns.values["path"][row]) for row in np.flatnonzero(labels.labelled).tolist() if not words[row]]
    problems = columns.listed("words for splits other than train, val, test and their usual names", unknown)
    problems += columns.listed("labelled rows without a split, where others have one", absent)
    if labels.task == "multilabel":  # 0 and 1 have no value that says "unlabelled": only the missing split does
        unlabelled = np.flatnonzero(~labels.labelled).tolist()
        lost = [(row, words[row]) for row in unlabelled if words[row]]
        problems += columns.listed("rows in a split without labels (write | for none of the labels)", lost)
    return found, problems


def _sizes(root: Path, paths: Sequence[str]) -> list[int]:
    """Return the bytes of every file, -1 where there is none."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(_size, root), paths))


def _size(root: Path, path: str) -> int:
    try:
        return os.stat(root / path).st_size if path and os.path.isfile(root / path) else -1
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return -1


def _wrong_paths(
    columns: Columns, root: Path, paths: list[str], sizes: list[int], fingerprint: Fingerprint
) -> list[str]:
    climbing = {row for row, path in enumerate(paths) if path == ".." or path.startswith("../")}
    empty = [(row, "") for row, path in enumerate(paths) if not path]
    drives = {row for row, path in enumerate(paths) if DRIVE.match(path) and sizes[row] < 0}
    missing = [
        (row, path) for row, path in enumerate(paths)
        if fingerprint != "names" and path and sizes[row] < 0 and row not in climbing | drives
    ]  # fmt: skip
    written = columns.values["path"]
    return [
        *columns.listed(
            "paths that climb out of the folder of the manifest", [(r, written[r]) for r in sorted(climbing)]
        ),
        *columns.listed(
            "paths with a drive letter, of another machine (write them relative to the folder of the manifest)",
            [(row, written[row]) for row in sorted(drives)],
        ),
        *columns.listed("rows without a path", empty),
        *columns.listed(f"paths that lead to no file{_nearby(root, missing)}", missing),
    ]


def _nearby(root: Path, missing: list[tuple[int, str]]) -> str:
    """Return where the first missing file lies, if its suffix or a folder was left out; "" where it is not to be seen."""
    if not missing:
        return ""
    path = missing[0][1]
    for suffix in SUFFIXES_LEFT_OUT:
        if _size(root, path + suffix) >= 0:
            return f" (the first does with {suffix} behind it: write paths with their suffix)"
    with suppress(OSError), os.scandir(root) as entries:
        for folder in sorted(entry.name for entry in entries if entry.is_dir()):
            if any(_size(root, f"{folder}/{path}{suffix}") >= 0 for suffix in ("", *SUFFIXES_LEFT_OUT)):
                return f" (the first lies in {folder}: write paths from the folder of the manifest on)"
    return ""


def _wrong_ids(columns: Columns, ids: Sequence[str]) -> list[str]:
    counts = Counter(ids)
    twice = [(row, name) for row, name in enumerate(ids) if name and counts[name] > 1]
    empty = [(row, columns.values["path"][row]) for row, name in enumerate(ids) if not name]
    return [
        *columns.listed("sample ids that are not unique", twice),
        *(columns.listed("rows without a sample_id", empty) if "sample_id" in columns.values else []),
    ]
