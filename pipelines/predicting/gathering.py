"""Pictures from wherever a user has them, as one data set; and some rows of a data set as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.Image import Image
from torch import Tensor

from featurecache.datasets import (
    ImageDataset,
    RowTable,
    is_archive,
    open_pictures,
    read_content,
    read_image,
    with_rgb_conversion,
)
from featurecache.errors import ConfigError, DatasetNotFoundError, UnreadableSampleError
from featurecache.rgb_conversion import RgbConversion
from pipelines.predicting.inputs import refuse_other_kinds
from pipelines.predicting.pixel_arrays import list_pictures

DEFAULT = RgbConversion()

Picture = Image | str | Path | npt.NDArray[Any] | Tensor
Pictures = Iterable[Picture] | Picture
"""PIL images, files, folders, archives, arrays and tensors (see `pixel_arrays`), in any mixture, or one of them."""


def gathered(images: Pictures, convert: RgbConversion = DEFAULT) -> ImageDataset:
    """Return images, files, folders and archives as one unlabelled data set, in the order given, converted to RGB so.

    Raises:
        DatasetNotFoundError: lists every path where nothing is.
        ConfigError: there is no image, or something that is none.
    """
    given = list_pictures(images)
    absent = [str(item) for item in given if not isinstance(item, Image) and not Path(item).exists()]
    if absent:
        raise DatasetNotFoundError(f"there is no {', '.join(absent)}. Name images, folders of images, or archives.")
    refuse_other_kinds([Path(item) for item in given if not isinstance(item, Image)])
    names: list[str] = []
    readers: list[Callable[[], Image]] = []
    contents: list[Callable[[], bytes | None]] = []
    for number, item in enumerate(given):
        if isinstance(item, Image):
            names.append(f"image {number}")
            readers.append(partial(_converted, item, names[-1], convert))
            contents.append(lambda: None)
        elif Path(item).is_dir() or is_archive(Path(item)):
            within = with_rgb_conversion(open_pictures(Path(item)), convert)
            names += [f"{item}/{name}" for name in within.table.sample_id]
            readers += [partial(within.read, row) for row in range(len(within))]
            contents += [partial(within.content, row) for row in range(len(within))]
        else:
            names.append(str(item))
            readers.append(partial(read_image, Path(item), convert))
            contents.append(partial(read_content, Path(item)))
    if not names:
        raise ConfigError(["there is no image to look at"])
    blank = [""] * len(names)
    table = RowTable(sample_id=names, target=np.full(len(names), -1), split=blank, domain=blank, group=blank)
    return ImageDataset(
        name="images", spec="", table=table, class_names=(), task="classification",
        read=lambda row: readers[row](), content=lambda row: contents[row](), identity={},
    )  # fmt: skip


def _converted(image: Image, name: str, convert: RgbConversion) -> Image:
    try:
        return convert(image)
    except (ValueError, OSError) as error:
        raise UnreadableSampleError(name, str(error)) from None


def some_rows(dataset: ImageDataset, rows: Sequence[int]) -> ImageDataset:
    """Return the data set of only these rows, in this order; its identity stays that of the whole."""
    table = dataset.table
    texts = {name: [getattr(table, name)[row] for row in rows] for name in ("sample_id", "split", "domain", "group")}
    picked = RowTable(target=np.asarray(table.target)[list(rows)], **texts)
    return replace(
        dataset,
        table=picked,
        read=lambda row: dataset.read(rows[row]),
        content=lambda row: dataset.content(rows[row]),
    )
