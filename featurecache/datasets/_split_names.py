"""Names of folders that stand for a split of the data, or for a fold of a cross-validation, and not for a class."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

UNLABELLED = ""
"""Split of pictures that only wait for a prediction."""
EVALUATION = "evaluation"
"""`eval` is the test where there is no other, else the validation."""

WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval", "训练", "训练集"), "train"),
    **dict.fromkeys(
        ("val", "valid", "validation", "validate", "validating", "dev", "devel", "development", "验证", "验证集"), "val"
    ),
    **dict.fromkeys(("test", "tests", "testing", "tst", "holdout", "heldout", "测试", "测试集"), "test"),
    **dict.fromkeys(("eval", "evaluation", "evaluate"), EVALUATION),
    **dict.fromkeys(("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"), UNLABELLED),
}
BESIDE = frozenset(
    [
        "set",
        "sets",
        "subset",
        "data",
        "dataset",
        "datasets",
        "split",
        "splits",
        "image",
        "images",
        "img",
        "imgs",
        "pic",
        "pics",
        "picture",
        "pictures",
        "photo",
        "photos",
        "sample",
        "samples",
        "folder",
        "dir",
        "file",
        "files",
        "crop",
        "crops",
        "cropped",
        "resized",
        "small",
        "full",
        "final",
        "new",
        "mini",
        "clean",
        "raw",
        "original",
        "orig",
        "public",
        "private",
        "official",
        "labeled",
        "labelled",
        "seg",
        "segmentation",
        "cls",
        "class",
        "classes",
        "classification",
        "jpg",
        "jpeg",
        "jpegs",
        "png",
        "px",
        "lt",
        "version",
        "ver",
        "of",
        "the",
        "for",
        "my",
        "part",
    ]
)
"""Words that say nothing more about a split: `seg_train`, `test_images`, `train_256x256`."""
GLUED = ("dataset", "datas", "data", "images", "image", "imgs", "img", "splits", "split", "sets", "set")
FOLDS = frozenset(("fold", "folds", "kfold", "cv", "split", "partition", "subset", "part", "batch", "shard", "chunk"))
"""Words that number parts of the data: `fold1`, `split_0`."""


@dataclass(frozen=True, slots=True)
class SplitName:
    """What the name of a folder says of a split."""

    split: str
    """train, val, test, `EVALUATION` or `UNLABELLED`."""
    rest: tuple[str, ...] = ()
    """Words in it that mean something else: ("bullet",) in `bullet_train`."""


def read_split_name(name: str) -> SplitName | None:
    """Return what a folder's name says of a split, whatever its case, separators, digits and surrounding words.

    None: it names no split, or several at once (`train_test_split`).
    """
    words = [_unglued(word) for word in _words(name)]
    said = {word for word in words if word in WORDS}
    found = {WORDS[word] for word in said}
    if said == {"train", "val"}:
        found = {"train"}
    if found == {"val", "test"} and said <= {"dev", "test"}:
        found = {"test"}  # test-dev, devtest
    if len(found) != 1:
        return None
    rest = tuple(word for word in words if word not in said and word not in BESIDE and len(word) > 1)
    return SplitName(found.pop(), rest)


def read_splits(names: Collection[str]) -> dict[str, str]:
    """Return name -> train, val, test or "" (unlabelled) for those of sibling folders that name a split.

    A name with another word in it counts only where its siblings name another split with the same word:
    `brain_train` beside `brain_test`, and not `bullet_train` alone.
    """
    read = {name: found for name in sorted(names) if (found := read_split_name(name))}
    said: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for found in read.values():
        said[found.rest].add(found.split)
    read = {name: found for name, found in read.items() if not found.rest or len(said[found.rest]) > 1}
    read = {name: found for name, found in read.items() if not _is_denied(name, names)}
    there = {found.split for found in read.values()}
    evaluation = "val" if "test" in there and "val" not in there else "test"
    return {name: evaluation if found.split == EVALUATION else found.split for name, found in read.items()}


def shared_words(names: Collection[str]) -> set[tuple[str, ...]]:
    """Return the other words that names of splits hold: of `cat_train, cat_test, dog_train` those are cat and dog."""
    return {found.rest for name in names if (found := read_split_name(name)) and found.rest}


def read_folds(names: Collection[str]) -> list[str]:
    """Return those of sibling folders that are numbered parts of the data: `fold1`, `split_0`, `photos_part_2`."""
    numbered = [name for name in sorted(names) if re.search(r"\d", name) and FOLDS.intersection(_words(name))]
    plain = {name: tuple(_words(name)) for name in numbered}
    return [
        name for name in numbered if set(plain[name]) - BESIDE <= FOLDS or list(plain.values()).count(plain[name]) > 1
    ]


def _is_denied(name: str, names: Collection[str]) -> bool:
    """Return whether a sibling is called the contrary, as `invalid` beside `valid`: then both are classes."""
    others = {other.lower() for other in names}
    return any(
        f"{no}{gap}{name.lower()}" in others for no in ("in", "un", "non", "not", "no") for gap in ("", "-", "_", " ")
    )


def _words(name: str) -> list[str]:
    """Return the words of a name in small letters, without digits: TestSet_2017 holds test and set."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    whole = re.sub(r"(hold|held)[\W_]*out", r"\1out", apart.lower())
    return re.findall(r"[^\W\d_]+", whole)


def _unglued(word: str) -> str:
    """Return the word for a split that is written in one with another, as in `trainset` or `imagestest`."""
    if word in WORDS or word in BESIDE:
        return word
    for beside in GLUED:
        for bare in (word.removesuffix(beside), word.removeprefix(beside)):
            if bare != word and bare in WORDS:
                return bare
    return word
