"""A .zip or .tar of an ImageFolder, read without unpacking."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from featurecache.datasets import Fingerprint, ImageDataset
from featurecache.datasets._decoding import check_size, decode
from featurecache.datasets._layout import SPLIT_FOLDERS, dataset_of, is_image
from featurecache.datasets._members import Member, content, members
from featurecache.errors import DatasetError, DatasetNotFoundError, UnreadableSampleError
from featurecache.features import Task

SUFFIXES = (".zip", ".tar")


@dataclass(frozen=True, slots=True)
class ArchiveReader:
    """Row -> picture, from the members of an archive."""

    path: Path
    members: list[Member]
    paths: list[str]

    def __call__(self, row: int) -> Image:
        """Return the RGB picture of one row."""
        return decode(self.content(row), self.paths[row])

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
    spec: str, *, split_seed: int = 0, task: Task | None = None, fingerprint: Fingerprint = "sizes"
) -> ImageDataset:
    """Open the archive at the path `spec`; a single folder around everything is not part of the sample ids."""
    path = Path(spec).expanduser().resolve()
    if not path.is_file():
        raise DatasetNotFoundError(f"{spec} is not a file. Name a .zip or .tar of class folders, or a folder.")
    everything = members(path)
    images = [member for member in everything if is_image(member.name)]
    _check_names([member.name for member in everything], [member.name for member in images], spec)
    wrapping = len(_wrapping([member.name for member in images]))
    files = {member.name[wrapping:]: member for member in images}
    return dataset_of(
        [(name, member.size) for name, member in files.items()],
        name=path.name.removesuffix(path.suffix) if path.suffix.lower() in SUFFIXES else path.name,
        spec=str(path),
        split_seed=split_seed,
        task=task,
        fingerprint=fingerprint,
        reader=lambda paths: ArchiveReader(path, [files[name] for name in paths], paths),
    )


def _check_names(names: list[str], images: list[str], spec: str) -> None:
    problems = []
    climbing = [name for name in names if name.startswith("/") or ".." in name.split("/")]
    if climbing:
        problems.append(f"members that climb out of it: {', '.join(map(repr, climbing[:5]))}")
    twice = [name for name, count in Counter(images).items() if count > 1]
    if twice:
        problems.append(f"several members of one name: {', '.join(map(repr, twice[:5]))}")
    if problems:
        raise DatasetError(f"{spec} holds {'; and '.join(problems)}. Pack it again.")


def _wrapping(names: list[str]) -> str:
    tops = {name.split("/")[0] for name in names}
    top = next(iter(tops), "")
    wraps = len(tops) == 1 and top.lower() not in SPLIT_FOLDERS and all(name.count("/") > 1 for name in names)
    return f"{top}/" if wraps else ""
