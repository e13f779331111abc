"""What folders say of the pictures in them: from relative paths to splits, domains and classes.

The levels are SPLIT, DOMAIN, CLASS; DOMAIN/SPLIT/CLASS and CLASS/SPLIT are read, too. A folder around everything is none of
them. A name that stands for a split is never a class without a word.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from featurecache.datasets._split_names import (
    BESIDE,
    UNLABELLED,
    SplitName,
    read_folds,
    read_split_name,
    read_splits,
    shared_words,
)
from featurecache.errors import DatasetError

log = logging.getLogger("featurecache")

Parts = list[tuple[str, ...]]
"""For every picture the folders above it, the topmost first, and its own name."""
NO_SPLITS = "?splits=none"
KINDS = frozenset(
    [
        "image",
        "images",
        "img",
        "imgs",
        "mask",
        "masks",
        "label",
        "labels",
        "annotation",
        "annotations",
        "segmentation",
        "segmentations",
        "depth",
        "groundtruth",
        "gt",
    ]
)
"""Names of folders that hold one kind of file of the same things."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the folders are to be read."""

    splits: Literal["auto", "none"] = "auto"
    """auto: folders with names of splits are splits; none: such names are classes like any other."""
    domains: Literal["auto", "folders", "none"] = "auto"
    """auto: the upper folders are domains where the same class names repeat under every one; folders: they are; none: never."""
    labels: Literal["auto", "none"] = "auto"
    """none: the folders say nothing at all, neither classes nor splits, and the sample ids are the whole paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """What the folders say of every picture."""

    wrapping: str
    """Path of the folder around everything, with a slash behind it; it is no part of the sample ids."""
    split: list[str] | None
    """train, val, test, or "" where a picture is not labelled; None: no folder gives splits."""
    domain: list[str]
    """"" where there are none."""
    label: list[str | None]
    """None where no folder gives one."""


@dataclass(frozen=True, slots=True)
class _Levels:
    """The pictures with the levels that were read so far taken out of their paths."""

    spec: str
    paths: list[str]
    parts: Parts
    split: list[str] | None = None


def arrange(paths: Sequence[str], spec: str, reading: Reading) -> Arrangement:
    """Read what the folders of relative paths say.

    Raises:
        DatasetError: splits beside classes, folds, pictures in class folders beside pictures in none, or not one domain and
            class for each picture where domains were asked for; the message names the first and the ways out.
    """
    if reading.labels == "none":
        return Arrangement(wrapping="", split=None, domain=[""] * len(paths), label=[None] * len(paths))
    parts: Parts = [tuple(path.split("/")) for path in paths]
    wrapping = _wrapping(parts, reading)
    depth = wrapping.count("/")
    levels = _Levels(spec, list(paths), [part[depth:] for part in parts])
    if reading.splits == "auto":
        levels = _with_splits(levels)
    domains = _domain_level(levels, reading)
    label: list[str | None] = [part[domains] if len(part) > domains + 1 else None for part in levels.parts]
    if levels.split is not None:
        label = [None if split == UNLABELLED else name for split, name in zip(levels.split, label, strict=True)]
    _check_loose(levels, label)
    if reading.splits == "auto":
        _check_classes(levels, {name for name in label if name is not None})
    known = levels.split or ["train"] * len(parts)
    domain = [
        part[0] if domains and split != UNLABELLED else "" for part, split in zip(levels.parts, known, strict=True)
    ]
    return Arrangement(wrapping=wrapping, split=levels.split, domain=domain, label=label)


def _wrapping(parts: Parts, reading: Reading) -> str:
    """Return the folders around everything: each holds one folder, and no picture beside it."""
    found = ""
    least = 4 if reading.domains == "folders" else 3
    while len(tops := {part[0] for part in parts}) == 1 and all(len(part) >= least for part in parts):
        within = {part[1] for part in parts}
        inner = read_splits(within)
        if (
            reading.splits == "auto"
            and read_splits(tops)
            and not (len(set(inner.values())) > 1 and inner.keys() == within)
        ):
            break  # a split folder, unless splits are all that it holds
        found += f"{tops.pop()}/"
        parts = [part[1:] for part in parts]
    return found


def _with_splits(levels: _Levels) -> _Levels:
    """Return the levels with the one that gives splits taken out."""
    tops = {part[0] for part in levels.parts if len(part) > 1}
    splits = read_splits(tops)
    loose = any(len(part) == 1 for part in levels.parts)
    if tops and splits.keys() == tops and not loose:
        _check_shared(levels, tops)
        _say_splits(levels.spec, splits)
        found = replace(
            levels, split=[splits[part[0]] for part in levels.parts], parts=[part[1:] for part in levels.parts]
        )
        return _unwrapped_within(found, [part[0] for part in levels.parts], splits)
    _check_tops(levels, tops, splits)
    return levels if splits else _with_inner_splits(levels)


def _check_tops(levels: _Levels, tops: Collection[str], splits: Collection[str]) -> None:
    """Refuse names of splits or folds beside others, but one that can only be a class."""
    folds = [name for name in read_folds(tops) if name not in splits]
    if len(folds) > 1 and len(folds) == len(tops):
        raise DatasetError(
            f"{levels.spec} holds {_some(folds)}: folds of a cross-validation or parts of the data, not classes. "
            f"Name one of them if it holds splits ({levels.spec}/{folds[0]}), put the classes of all into one folder and give "
            f'run-protocol "holdout?folds={len(folds)}", or say that they are classes with "{levels.spec}{NO_SPLITS}".'
        )
    odd = [*splits, *(folds if splits or len(folds) > 1 else ())]
    if not odd:
        return
    others = [name for name in tops if name not in odd]
    alone = len(odd) == 1 and len(others) > 1 and all(len(part) == 2 for part in levels.parts if part[0] == odd[0])
    if alone and all(len(part) > 1 for part in levels.parts):
        _warn_of_class(levels.spec, odd[0], len(others))
        return
    if len(odd) > 1 or any(len(part) > 2 for part in levels.parts if part[0] == odd[0]) or others:
        beside = next(
            path for path, p in zip(levels.paths, levels.parts, strict=True) if len(p) == 1 or p[0] not in odd
        )
        raise DatasetError(
            f"{levels.spec} mixes the split folders {', '.join(sorted(odd))} with {beside!r} beside them. Put every image into "
            f'a split folder, or none; or say that these are classes like the others with "{levels.spec}{NO_SPLITS}".'
        )


def _with_inner_splits(levels: _Levels) -> _Levels:
    """Return the levels of DOMAIN/SPLIT/CLASS or CLASS/SPLIT with the splits taken out."""
    inner = {part[1] for part in levels.parts if len(part) > 2}
    splits = read_splits(inner)
    if not splits:
        return levels
    whole = all(len(part) > 2 and part[1] in splits for part in levels.parts)
    if not whole and len(set(splits.values())) > 1:
        beside = next(
            path for path, p in zip(levels.paths, levels.parts, strict=True) if len(p) < 3 or p[1] not in splits
        )
        raise DatasetError(
            f"{levels.spec} has the split folders {', '.join(sorted(splits))} below some of its folders, and {beside!r} in none. "
            f'Put every image into a split folder, or none; or have them ignored with "{levels.spec}{NO_SPLITS}".'
        )
    if not whole:
        log.info("%s: folders called %s that lie below others are not taken as splits", levels.spec, _some(splits))
        return levels
    tops = {part[0] for part in levels.parts}
    log.info("%s: the folders %s below each of %d folders are splits", levels.spec, _some(splits), len(tops))
    _say_splits(levels.spec, splits)
    return replace(
        levels,
        split=[splits[part[1]] for part in levels.parts],
        parts=[(part[0], *part[2:]) for part in levels.parts],
    )


def _check_shared(levels: _Levels, names: Collection[str]) -> None:
    words = shared_words(names)
    if len(words) > 1:
        shown = _some([" ".join(rest) for rest in sorted(words)])
        raise DatasetError(
            f"the folders of {levels.spec} name splits and something more at once ({shown}): {_some(names)}. Arrange them as "
            f'SPLIT/CLASS, such as train/{sorted(words)[0][0]}; or have them taken as classes with "{levels.spec}{NO_SPLITS}".'
        )


def _say_splits(spec: str, splits: dict[str, str]) -> None:
    plain = {"train", "training", "val", "valid", "validation", "test"}
    if any(name.lower() not in plain for name in splits):
        told = ", ".join(f"{name} is {split or 'unlabelled'}" for name, split in sorted(splits.items()))
        log.info("%s: folders that are splits: %s", spec, told)


def _unwrapped_within(levels: _Levels, tops: Sequence[str], splits: dict[str, str]) -> _Levels:
    """Take out a folder that lies around everything in each split, as in train/train/cat or train/images/cat."""
    while True:
        below: dict[str, set[str]] = defaultdict(set)
        least: dict[str, int] = defaultdict(lambda: 99)
        for top, part in zip(tops, levels.parts, strict=True):
            below[top].add(part[0] if len(part) > 1 else "")
            least[top] = min(least[top], len(part))
        again = {top for top, names in below.items() if _says_again(names, top)}
        labelled = [top for top in below if splits[top] != UNLABELLED]
        alike = len({name for top in labelled for name in below[top]}) == 1 and all(least[t] > 2 for t in labelled)
        chosen = again or (set(labelled) if alike else set())
        if not chosen:
            return levels
        levels = replace(levels, parts=[
            part[1:] if top in chosen else part for top, part in zip(tops, levels.parts, strict=True)
        ])  # fmt: skip


def _says_again(names: Collection[str], top: str) -> bool:
    """Return whether all there is below a split folder is one folder that names the same split."""
    inner, outer = (read_split_name(next(iter(found))) for found in (names, (top,)))
    return len(names) == 1 and outer is not None and inner in (outer, SplitName(outer.split))


def _domain_level(levels: _Levels, reading: Reading) -> int:
    """Return 1 where the upper folders are domains, else 0."""
    if reading.domains == "none":
        return 0
    known = levels.split or ["train"] * len(levels.parts)
    parts = [part for part, split in zip(levels.parts, known, strict=True) if split != UNLABELLED]
    shallow = next((part for part in parts if len(part) < 3), None)
    if reading.domains == "folders":
        if shallow is not None:
            raise DatasetError(
                f"{levels.spec} was to hold folders of domains, DOMAIN/CLASS, and {'/'.join(shallow)!r} is not in two folders. "
                "Move it, or leave domains=folders out."
            )
        return 1
    if shallow is not None or not parts:
        return 0
    classes: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        classes[part[0]].add(part[1])
    every, some = set.intersection(*classes.values()), set.union(*classes.values())
    if len(classes) < 2 or len(every) < 2 or 2 * len(every) < len(some) or not _may_be_classes(every):
        return 0
    absent = [f"{name} lacks {_some(some - own)}" for name, own in sorted(classes.items()) if own != some]
    log.info(
        "%s: the same %d classes lie under each of %s, which are domains%s; if these are the classes, say \"%s?domains=none\"",
        levels.spec, len(every), _some(classes), f" ({'; '.join(absent[:5])})" if absent else "", levels.spec,
    )  # fmt: skip
    return 1


def _may_be_classes(names: Collection[str]) -> bool:
    """Return whether names that repeat can be those of classes, and not years, splits or kinds of file."""
    years = all(re.fullmatch(r"(19|20)\d\d", name) for name in names)
    kinds = all(name.lower() in BESIDE | KINDS for name in names)
    return not years and not kinds and len(read_splits(names)) < 2 and len(read_folds(names)) < 2


def _check_loose(levels: _Levels, label: Sequence[str | None]) -> None:
    known = levels.split or ["train"] * len(label)
    asked = [(path, name) for path, name, split in zip(levels.paths, label, known, strict=True) if split != UNLABELLED]
    loose = [path for path, name in asked if name is None]
    if loose and len(loose) < len(asked):
        raise DatasetError(
            f"{levels.spec} mixes images in class folders with {len(loose)} images that lie in none, such as {loose[0]!r}. "
            f"Put every image into a class folder, or none.{_way_for_unlabelled(levels, set(loose), asked)}"
        )


def _way_for_unlabelled(levels: _Levels, loose: Collection[str], asked: Sequence[tuple[str, str | None]]) -> str:
    """Return what to do with whole split folders without classes, such as the test of a competition."""
    tops = {path.split("/")[0] for path in loose}
    others = {path.split("/")[0] for path, _ in asked} - tops
    if levels.split is None or any(path.split("/")[0] in tops for path, _ in asked if path not in loose) or not others:
        return ""
    return (
        f" The pictures of {_some(tops)} have no labels: move them out of {levels.spec} and give them to predict, or name "
        f"{levels.spec}/{min(others)} alone."
    )


def _check_classes(levels: _Levels, classes: Collection[str]) -> None:
    """Refuse or name classes that are called like splits or folds, where splits were found above or below them."""
    folds = read_folds(classes)
    if len(folds) > 1 and len(folds) == len(classes):
        raise DatasetError(
            f"{levels.spec} has {_some(folds)} where class folders belong: parts of the data, not classes. Put the class folders "
            f'of all into one folder; or say that they are classes with "{levels.spec}{NO_SPLITS}".'
        )
    splits = read_splits(classes)
    tops = {part[0] for part in levels.parts}
    if not splits or (levels.split is None and splits.keys() <= tops):
        return  # of the topmost folders all is said
    if len(splits) == 1 and len(classes) > 2:
        _warn_of_class(levels.spec, next(iter(splits)), len(classes) - 1)
        return
    raise DatasetError(
        f"{levels.spec} has the split folders {', '.join(sorted(splits))} where class folders belong. Arrange it as SPLIT/CLASS; "
        f'or say that they are classes with "{levels.spec}{NO_SPLITS}".'
    )


def _warn_of_class(spec: str, name: str, others: int) -> None:
    log.warning(
        "%s: the folder %r is taken as a class, as it lies among %d others that are no splits. If it is a split, put the others "
        "into split folders, too",
        spec, name, others,
    )  # fmt: skip


def _some(names: Collection[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:5]) + (f", ... ({len(shown)})" if len(shown) > 5 else "")
