"""How the pictures of a data set become RGB: options of its spec, recorded in its identity where they change features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from featurecache.datasets import ImageDataset
from featurecache.datasets._decoding import DEFAULT, installed_formats
from featurecache.datasets._query import queried
from featurecache.errors import DatasetError, UnreadableSampleError
from featurecache.rgb_conversion import OPTIONS, RgbConversion, is_rescaled

PROBED = 8
"""Files that are looked at to learn whether a data set has pictures with values that are scaled to 8 bits."""
EIGHT_BITS = (".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp")


def read_pixel_options(spec: str) -> tuple[str, RgbConversion]:
    """Return the spec without the options of this file, and what they ask for.

    Raises:
        DatasetError: a value is not of its form.
    """
    if "?" not in spec or Path(spec).exists():
        return spec, DEFAULT
    name, options = queried(spec)
    ours = {key: value for key, value in options.items() if key in OPTIONS}
    left = "&".join(f"{key}={value}" for key, value in options.items() if key not in OPTIONS)
    return (f"{name}?{left}" if left else name), RgbConversion.parse(ours, spec)


def with_pixels(dataset: ImageDataset, convert: RgbConversion) -> ImageDataset:
    """Return the data set with its pictures converted so, and with a record of it where features depend on it.

    Pictures of more than 8 bits were cut at 255 by earlier versions: the record tells features of then and now apart. A
    data set of 8 bits without options has none.

    Raises:
        DatasetError: options are given, and its pictures lie in no files that they could change.
    """
    read: Any = dataset.read
    if not hasattr(read, "convert"):
        if convert != DEFAULT:
            raise DatasetError(
                f"{dataset.spec!r} takes no {' or '.join(OPTIONS)}: its pictures are not in files of their own."
            )
        return dataset
    pixels = convert.identity
    if convert.range is None and _has_rescaled_pictures(dataset):
        pixels["over_8_bits"] = "full scale"
    if not pixels:
        return dataset
    query = convert.query
    return dataclasses.replace(
        dataset,
        read=dataclasses.replace(read, convert=convert),
        identity={**dataset.identity, "pixels": pixels},
        spec=f"{dataset.spec}{'&' if '?' in dataset.spec else '?'}{query}" if query else dataset.spec,
    )


def _has_rescaled_pictures(dataset: ImageDataset) -> bool:
    """Return whether some of the files, looked at evenly, hold values that are scaled to 8 bits."""
    paths: list[str] = dataset.read.paths  # type: ignore[attr-defined]
    rows = [row for row, path in enumerate(paths) if not path.lower().endswith(EIGHT_BITS)]
    chosen = rows if len(rows) <= PROBED else [rows[i * (len(rows) - 1) // (PROBED - 1)] for i in range(PROBED)]
    return any(_is_rescaled(dataset, row) for row in chosen)


def _is_rescaled(dataset: ImageDataset, row: int) -> bool:
    try:
        content = dataset.content(row)
    except UnreadableSampleError:  # reading its row says why
        return False
    return content is not None and is_rescaled(content, installed_formats())
