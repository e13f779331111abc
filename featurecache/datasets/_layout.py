"""The ImageFolder layout: from relative paths to rows, classes and splits, wherever the files lie."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from os.path import splitext
from typing import get_args, get_type_hints

import numpy as np

from featurecache.datasets import MANIFESTS, SPLITS, Fingerprint, ImageDataset, LeftOut, RowTable
from featurecache.datasets._arranging import KINDS, Reading, arrange
from featurecache.datasets._fingerprint import Reader, check_one_class, fingerprint_of, measured
from featurecache.datasets._query import check_keys, queried
from featurecache.datasets._recognising import SUFFIXES
from featurecache.datasets._split_names import WORDS
from featurecache.datasets._splits import divided, report_gaps
from featurecache.errors import DatasetError
from featurecache.features import Task

log = logging.getLogger("featurecache")

SHOWN = 5
SPLIT_FOLDERS = {word: split for word, split in WORDS.items() if split in SPLITS}
"""Plain words for train, val and test; `read_splits` knows them in every spelling."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies in a folder or an archive, by relative path, but for hidden files."""

    pictures: list[tuple[str, int]] = field(default_factory=list)
    """(path, size); -1 where it is not known."""
    others: list[str] = field(default_factory=list)
    """Files that are no pictures."""
    folders: list[str] = field(default_factory=list)


def read_query(spec: str) -> tuple[str, Reading]:
    """Return the path in `PATH?splits=none&domains=folders`, and how its folders are to be read.

    Raises:
        DatasetError: an option or a value of one is unknown; names those there are.
    """
    path, options = queried(spec)
    kinds = {name: get_args(hint) for name, hint in get_type_hints(Reading).items()}
    check_keys(options, list(kinds), spec)
    for name, value in options.items():
        if value not in kinds[name]:
            raise DatasetError(f"{spec!r} has {name}={value}. It may be {' or '.join(kinds[name])}.")
    return path, Reading(**options)  # type: ignore[arg-type]


def dataset_of(
    listing: Listing,
    *,
    name: str,
    spec: str,
    reading: Reading,
    split_seed: int,
    task: Task | None,
    fingerprint: Fingerprint,
    reader: Callable[[list[str], list[str]], Reader],
) -> ImageDataset:
    """Return the data set of what lies below `spec`; `reader` makes `read` from paths and ids in row order.

    Sample ids are the paths without the folder around everything, with accents in their composed form (NFC), so that a copy
    from another operating system is the same data.

    Raises:
        DatasetError: there is no image, a name is not text, two names are one, the folders mix several layouts, or folders
            cannot give labels of that task.
    """
    check_one_class(task, spec)
    _check_paths(listing, spec)
    found = sorted((unicodedata.normalize("NFC", path), path, size) for path, size in listing.pictures)
    _check_composed([path for path, _, _ in found], spec)
    arranged = arrange([path for path, _, _ in found], spec, reading)
    ids = [path.removeprefix(arranged.wrapping) for path, _, _ in found]
    classes = tuple(sorted({label for label in arranged.label if label is not None}))
    number = {label: i for i, label in enumerate(classes)}
    target = np.array([-1 if label is None else number[label] for label in arranged.label], dtype=np.int64)
    blank = [""] * len(ids)
    split, rule = divided(ids, blank, arranged.split, target, split_seed, spec=spec)
    left = LeftOut(files=tuple(sorted(listing.others)), folders=tuple(_without_picture(listing)))
    _report(left, arranged.wrapping, spec)
    tables = [path for path in left.files if path.lower().endswith(MANIFESTS)]
    if tables and len(classes) < 2 and reading.labels == "auto":
        log.warning(
            "%s: the folders give no classes, but %s lies beside the pictures. If it says which is which, name it as the data set",
            spec, tables[0],
        )  # fmt: skip
    if classes:
        report_doubtful(classes, spec)
        report_gaps(classes, target, split, spec)
    read = reader([path for _, path, _ in found], ids)
    measures = measured(fingerprint, [size for _, _, size in found], read)
    identity = {
        "name": name,
        "fingerprint": fingerprint_of(fingerprint, ids, measures, target, classes),
        "rows": len(ids),
        "split_rule": rule,
    }
    query = "&".join(
        f"{key}={getattr(reading, key)}" for key in get_type_hints(Reading) if getattr(reading, key) != "auto"
    )
    return ImageDataset(
        name=name,
        spec=f"{spec}?{query}" if query else spec,
        table=RowTable(sample_id=ids, target=target, split=split, domain=arranged.domain, group=blank),
        class_names=classes,
        task="classification",
        read=read,
        identity=identity,
        content=read.content,
        measures=measures,
        left_out=left,
    )


def _check_paths(listing: Listing, spec: str) -> None:
    paths = [path for path, _ in listing.pictures]
    if not paths:
        there = f", but {_counted(listing.others)}" if listing.others else ""
        archives = [
            path for path in listing.others if path.lower().endswith((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz"))
        ]
        way = f" Name an archive in it ({archives[0]}), or unpack them." if archives else ""
        raise DatasetError(
            f"{spec} holds no image{there}.{way} Known suffixes: {', '.join(sorted(SUFFIXES))}; other files are known by their content."
        )
    broken = [path for path in paths if not path.isascii() and _has_lone_surrogates(path)]
    if broken:
        raise DatasetError(
            f"{spec} holds {len(broken)} names that are not UTF-8, such as {broken[0]!r}. Sample ids are text: rename them."
        )


def _has_lone_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _check_composed(ids: Sequence[str], spec: str) -> None:
    twice = [path for path, count in Counter(ids).items() if count > 1]
    if twice:
        raise DatasetError(
            f"{spec} holds {len(twice)} pictures twice under names that differ only in how accents are encoded, such as "
            f"{twice[0]!r}. Remove one of each."
        )


def _without_picture(listing: Listing) -> list[str]:
    """Return the topmost folders that hold no picture, nor do those below them."""
    holding: set[str] = {""}
    for path, _ in listing.pictures:
        folder = path.rpartition("/")[0]
        while folder not in holding:
            holding.add(folder)
            folder = folder.rpartition("/")[0]
    return [f for f in sorted(set(listing.folders)) if f not in holding and f.rpartition("/")[0] in holding]


def _report(left: LeftOut, wrapping: str, spec: str) -> None:
    if wrapping:
        log.info("%s: everything lies in %s, which is no class and no part of the sample ids", spec, wrapping)
    if left.files:
        log.warning("%s: left out as no pictures: %s", spec, _counted(left.files))
    if left.folders:
        shown = ", ".join(map(repr, left.folders[:SHOWN])) + (", ..." if len(left.folders) > SHOWN else "")
        log.warning("%s: folders without a picture (%d): %s", spec, len(left.folders), shown)


def _counted(files: Iterable[str]) -> str:
    """Return how many files there are of each suffix, with the first name of each."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in files:
        kinds[splitext(path)[1].lower()].append(path)
    most = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    shown = [
        f"{len(found)} {suffix or 'without suffix'} ({found[0]!r}{', ...' if len(found) > 1 else ''})"
        for suffix, found in most[:SHOWN]
    ]
    rest = sum(len(found) for _, found in most[SHOWN:])
    total = sum(len(found) for found in kinds.values())
    return f"{total} files: {', '.join(shown)}" + (f" and {rest} of other suffixes" if rest else "")


def report_doubtful(classes: Collection[str], spec: str) -> None:
    """Warn of classes that are probably none: kinds of file, or names that are nearly the same."""
    if len(classes) > 1 and all(name.lower() in KINDS for name in classes):
        log.warning(
            "%s: the classes are the folders %s: kinds of file, such as pictures and their masks, rather than what is in them?",
            spec, ", ".join(sorted(classes)),
        )  # fmt: skip
    report_alike(classes, spec)


def report_alike(classes: Collection[str], spec: str) -> None:
    """Warn of classes whose names differ in case, spaces or leading zeros alone."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
        alike[re.sub(r"\b0+(?=\d)", "", words) or name].append(name)
    found = [names for names in alike.values() if len(names) > 1]
    if found:
        shown = "; ".join(", ".join(map(repr, sorted(names))) for names in found[:SHOWN])
        log.warning(
            "%s: %d classes have names that are nearly the same, and stay classes of their own: %s. Write them alike where one "
            "class is meant",
            spec, sum(map(len, found)), shown,
        )  # fmt: skip
