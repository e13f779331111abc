"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels; ships with the package, needs no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from featurecache.datasets import Fingerprint, ImageDataset, RowTable
from featurecache.datasets._fingerprint import check_one_class, fingerprint_of, measured
from featurecache.datasets._splits import automatic
from featurecache.errors import DatasetError
from featurecache.features import Task


@dataclass(frozen=True, slots=True, eq=False)
class DigitsReader:
    """Row -> picture, from the pixels in memory."""

    pixels: npt.NDArray[np.uint8]

    def __call__(self, row: int) -> Image.Image:
        """Return the RGB picture of one row, bright ink on black."""
        return Image.fromarray(self.pixels[row]).convert("RGB")

    def content(self, row: int) -> bytes:
        """Return the pixels of one row."""
        return bytes(self.pixels[row].tobytes())


def open(
    spec: str, *, split_seed: int = 0, task: Task | None = None, fingerprint: Fingerprint = "sizes"
) -> ImageDataset:
    """Open the digits; `spec` must be empty."""
    if spec:
        raise DatasetError(f"digits takes no argument, got {spec!r}")
    check_one_class(task, "digits")
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    target = target.astype(np.int64)
    names = tuple(str(digit) for digit in range(10))
    ids = [f"digits/{row:04d}" for row in range(len(target))]
    split = automatic(ids, target, split_seed)
    table = RowTable(sample_id=ids, target=target, split=split, domain=[""] * len(ids), group=[""] * len(ids))
    read = DigitsReader(pixels)
    measures = measured(fingerprint, [64] * len(ids), read)
    identity = {
        "name": "digits",
        "fingerprint": fingerprint_of(fingerprint, ids, measures, target, names),
        "rows": len(ids),
        "split_rule": f"digest 80/20, val 10 % of train, seed {split_seed}",
    }
    return ImageDataset(
        name="digits", spec="digits", table=table, class_names=names, task="classification",
        read=read, identity=identity, measures=measures,
    )  # fmt: skip
