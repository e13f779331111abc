"""The digest that recognises a data set: ids and targets, with sizes, bytes or neither."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy.typing as npt
from PIL.Image import Image

from featurecache.datasets import Fingerprint
from featurecache.errors import DatasetError, UnreadableSampleError
from featurecache.features import Task


class Reader(Protocol):
    """Row -> picture, from the bytes of a file."""

    def __call__(self, row: int) -> Image:
        """Return the RGB picture of one row."""

    def content(self, row: int) -> bytes:
        """Return the bytes that the picture is decoded from; raises `UnreadableSampleError`."""


def measured(kind: Fingerprint, sizes: Sequence[int], reader: Reader) -> list[str]:
    """Return what stands for the bytes of every row: the size, a digest, or nothing."""
    if kind == "sizes":
        return [str(size) for size in sizes]
    if kind == "names":
        return [""] * len(sizes)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(_content_digest, reader), range(len(sizes))))


def _content_digest(reader: Reader, row: int) -> str:
    try:
        return digest_of(reader.content(row))
    except UnreadableSampleError as error:  # its row is there, and reading it will say why it cannot be read
        return f"unreadable: {error.reason}"


def digest_of(content: bytes) -> str:
    """Return 32 hexadecimal digits that tell contents apart."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprint_of(
    kind: Fingerprint,
    ids: Sequence[str],
    measures: Sequence[str],
    target: npt.NDArray[Any],
    classes: Sequence[str],
) -> str:
    """Return a digest over ids, measures, targets and class names, in row order; it names its kind if not "sizes"."""
    digest = hashlib.blake2b(digest_size=16)
    for name, measure, label in zip(ids, measures, target.tolist(), strict=True):
        digest.update(f"{name}\0{measure}\0{label}\n".encode())
    digest.update("\0".join(classes).encode())
    return digest.hexdigest() if kind == "sizes" else f"{kind}:{digest.hexdigest()}"


def check_one_class(task: Task | None, spec: str) -> None:
    """Refuse every task but classification.

    Raises:
        DatasetError: the labels of `spec` are one class for each image.
    """
    if task not in (None, "classification"):
        raise DatasetError(
            f"{spec} gives each image one class, and task {task} was asked for. "
            "Labels of that kind come from a manifest (.csv, .tsv or .parquet)."
        )
