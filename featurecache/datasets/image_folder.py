"""A folder of class folders (ImageFolder), with or without train/, val/ and test/; a flat folder is unlabelled."""

from __future__ import annotations

import os
from builtins import open as open_file
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL.Image import Image

from featurecache.datasets import Fingerprint, ImageDataset
from featurecache.datasets._arranging import Reading
from featurecache.datasets._decoding import DEFAULT, decode, read_regular_file
from featurecache.datasets._layout import Listing, dataset_of, read_query
from featurecache.datasets._recognising import has_image_suffix, is_hidden, is_picture
from featurecache.errors import DatasetError, DatasetNotFoundError
from featurecache.features import Task
from featurecache.rgb_conversion import RgbConversion


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Row -> picture, from files below a root."""

    root: Path
    paths: list[str]
    convert: RgbConversion = DEFAULT

    def __call__(self, row: int) -> Image:
        """Return the RGB picture of one row."""
        return decode(self.content(row), self.paths[row], self.convert)

    def content(self, row: int) -> bytes:
        """Return the bytes of one file."""
        return read_regular_file(self.root / self.paths[row], self.paths[row])


def open(
    spec: str, *, split_seed: int = 0, task: Task | None = None, fingerprint: Fingerprint = "sizes",
    reading: Reading | None = None,
) -> ImageDataset:  # fmt: skip
    """Open the folder at the path `spec`, which may end in `?splits=none` and `?domains=folders` or `none`."""
    place, asked = read_query(spec) if not Path(spec).expanduser().is_dir() else (spec, Reading())
    root = Path(place).expanduser().resolve()
    if not root.is_dir():
        raise DatasetNotFoundError(
            f"{spec} is not a folder. Name a folder of class folders, a .zip or .tar of one, or digits."
        )
    try:
        listing = Listing()
        _scan(listing, str(root), "", (_place(str(root)),), sizes=fingerprint == "sizes")
    except OSError as error:
        raise DatasetError(
            f"cannot list {error.filename}: {error.strerror}. Make it readable, or move it away."
        ) from None
    return dataset_of(
        listing,
        name=root.name,
        spec=str(root),
        reading=reading or asked,
        split_seed=split_seed,
        task=task,
        fingerprint=fingerprint,
        reader=partial(_reader, root),
    )


def _reader(root: Path, paths: list[str], ids: list[str]) -> FolderReader:
    """Return what reads the files; it names them by their ids where these are paths below one folder."""
    around = paths[0].removesuffix(ids[0])
    if all(path == around + name for path, name in zip(paths, ids, strict=True)):
        return FolderReader(root / around, ids)
    return FolderReader(root, paths)  # names whose accents are encoded otherwise in the file system


def _scan(listing: Listing, folder: str, below: str, above: tuple[tuple[int, int], ...], *, sizes: bool) -> None:
    """List what lies in `folder`, by paths relative to the root; `above` are the places of the folders around.

    Without `sizes` every size is -1 and no file is looked at whose suffix is that of a picture: the listing of a folder tells
    what is a file.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            path = below + entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                place = _place(entry.path)
                if place in above:
                    raise DatasetError(f"{entry.path} is a link to a folder that holds it. Remove the link.")
                listing.folders.append(path)
                _scan(listing, entry.path, f"{path}/", (*above, place), sizes=sizes)
            elif _is_picture(entry):
                listing.pictures.append((path, _size(entry) if sizes else -1))
            else:
                listing.others.append(path)


def _is_picture(entry: os.DirEntry[str]) -> bool:
    if has_image_suffix(entry.name):
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    if not entry.is_file():
        return False
    try:
        return is_picture(entry.name, -1, partial(_first_bytes, entry.path))
    except OSError:
        return False  # it is named with what is left out


def _first_bytes(path: str, count: int) -> bytes:
    with open_file(path, "rb") as file:
        return file.read(count)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # a link to nothing: its row is there, and reading it says why it cannot be read
        return -1


def _place(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
