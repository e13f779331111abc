"""A folder of class folders (ImageFolder), with or without train/, val/ and test/; a flat folder is unlabelled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from featurecache.datasets import ImageDataset
from featurecache.datasets._decoding import decode
from featurecache.datasets._layout import dataset_of, is_image
from featurecache.errors import DatasetNotFoundError, UnreadableSampleError


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Row -> picture, from files below a root."""

    root: Path
    paths: list[str]

    def __call__(self, row: int) -> Image:
        """Return the RGB picture of one row."""
        path = self.root / self.paths[row]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UnreadableSampleError(self.paths[row], error.strerror or str(error)) from None
        return decode(content, self.paths[row])


def open(spec: str, *, split_seed: int = 0) -> ImageDataset:
    """Open the folder at the path `spec`."""
    root = Path(spec).expanduser().resolve()
    if not root.is_dir():
        raise DatasetNotFoundError(
            f"{spec} is not a folder. Name a folder of class folders, a .zip or .tar of one, or digits."
        )
    return dataset_of(
        _scan(root, ""),
        name=root.name,
        spec=str(root),
        split_seed=split_seed,
        reader=lambda paths: FolderReader(root, paths),
    )


def _scan(root: Path, below: str) -> Iterator[tuple[str, int]]:
    with os.scandir(root / below) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            relative = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _scan(root, relative)
            elif is_image(relative):
                yield relative, entry.stat().st_size
