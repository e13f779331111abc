"""A .zip or .tar of an ImageFolder, read without unpacking."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from featurecache.datasets import ARCHIVES, Fingerprint, ImageDataset
from featurecache.datasets._arranging import Reading
from featurecache.datasets._decoding import DEFAULT, check_size, decode
from featurecache.datasets._layout import Listing, dataset_of, read_query
from featurecache.datasets._members import Contents, Member, content, contents_of, first_bytes
from featurecache.datasets._recognising import has_image_suffix, is_hidden, is_picture
from featurecache.errors import DatasetError, DatasetNotFoundError, UnreadableSampleError
from featurecache.features import Task
from featurecache.rgb_conversion import RgbConversion

DRIVE = re.compile("[A-Za-z]:/")
"""Start of an absolute path of Windows."""


@dataclass(frozen=True, slots=True)
class ArchiveReader:
    """Row -> picture, from the members of an archive."""

    path: Path
    members: list[Member]
    paths: list[str]
    convert: RgbConversion = DEFAULT

    def __call__(self, row: int) -> Image:
        """Return the RGB picture of one row."""
        return decode(self.content(row), self.paths[row], self.convert)

    def content(self, row: int) -> bytes:
        """Return the unpacked bytes of one member."""
        member, sample_id = self.members[row], self.paths[row]
        check_size(max(member.size, member.packed), sample_id)
        try:
            return content(self.path, member)
        except OSError as error:
            raise UnreadableSampleError(sample_id, error.strerror or str(error)) from None
        except ValueError as error:
            raise UnreadableSampleError(sample_id, str(error)) from None


def open(
    spec: str, *, split_seed: int = 0, task: Task | None = None, fingerprint: Fingerprint = "sizes",
    reading: Reading | None = None,
) -> ImageDataset:  # fmt: skip
    """Open the archive at the path `spec`, which may end in `?splits=none` and `?domains=folders` or `none`."""
    place, asked = read_query(spec) if not Path(spec).expanduser().is_file() else (spec, Reading())
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise DatasetNotFoundError(f"{spec} is not a file. Name a .zip or .tar of class folders, or a folder.")
    contents = contents_of(path)
    listing = _listed(contents)
    _check_names(contents, [name for name, _ in listing.pictures], spec)
    files = {member.name: member for member in contents.members}
    return dataset_of(
        listing,
        name=_stem(path.name),
        spec=str(path),
        reading=reading or asked,
        split_seed=split_seed,
        task=task,
        fingerprint=fingerprint,
        reader=lambda paths, ids: ArchiveReader(contents.place, [files[name] for name in paths], ids),
    )


def _stem(name: str) -> str:
    suffix = max((suffix for suffix in ARCHIVES if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(suffix)]


def _listed(contents: Contents) -> Listing:
    listing = Listing()
    for member in contents.members:
        parts = member.name.split("/")
        if any(map(is_hidden, parts)):
            continue
        if has_image_suffix(parts[-1]) or _is_picture(contents.place, member):
            listing.pictures.append((member.name, member.size))
        else:
            listing.others.append(member.name)
    shown = [parts for name in (*(m.name for m in contents.members), *(f"{folder}/" for folder in contents.folders))
             if not any(map(is_hidden, parts := name.split("/")))]  # fmt: skip
    listing.folders.extend({"/".join(parts[:depth]) for parts in shown for depth in range(1, len(parts))} - {"", "."})
    return listing


def _is_picture(path: Path, member: Member) -> bool:
    try:
        return is_picture(member.name, member.size, lambda count: first_bytes(path, member, count))
    except (OSError, ValueError):
        return False  # it is named with what is left out


def _check_names(contents: Contents, images: list[str], spec: str) -> None:
    problems = []
    names = [member.name for member in contents.members]
    climbing = [name for name in names if name.startswith("/") or ".." in name.split("/") or DRIVE.match(name)]
    if climbing:
        problems.append(f"members that climb out of it: {', '.join(map(repr, climbing[:5]))}")
    twice = [name for name, count in Counter(images).items() if count > 1]
    if twice:
        problems.append(f"several members of one name: {', '.join(map(repr, twice[:5]))}")
    if problems:
        raise DatasetError(f"{spec} holds {'; and '.join(problems)}. Pack it again.")
