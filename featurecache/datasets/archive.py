"""A .zip or .tar of an ImageFolder, read without unpacking."""

from __future__ import annotations

import os
import tarfile
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from PIL.Image import Image

from featurecache.datasets import ImageDataset
from featurecache.datasets._decoding import decode
from featurecache.datasets._layout import SPLIT_FOLDERS, dataset_of, is_image
from featurecache.errors import DatasetError, DatasetNotFoundError, UnreadableSampleError


class ArchiveReader:
    """Row -> picture, from the members of an archive; opened anew in every thread and process that reads."""

    def __init__(self, path: Path, members: list[str], paths: list[str]) -> None:
        self.path, self.members, self.paths = path, members, paths
        self._local = threading.local()

    def __getstate__(self) -> tuple[Path, list[str], list[str]]:
        return self.path, self.members, self.paths

    def __setstate__(self, state: tuple[Path, list[str], list[str]]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __call__(self, row: int) -> Image:
        """Return the RGB picture of one row."""
        try:
            content = self._member(self.members[row])
        except (OSError, zipfile.BadZipFile, tarfile.TarError, RuntimeError, EOFError) as error:
            raise UnreadableSampleError(self.paths[row], str(error)) from None
        return decode(content, self.paths[row])

    def _member(self, name: str) -> bytes:
        if getattr(self._local, "owner", None) != os.getpid():
            self._local.owner, self._local.archive = os.getpid(), _opened(self.path)
        archive = self._local.archive
        if isinstance(archive, zipfile.ZipFile):
            return archive.read(name)
        file = archive.extractfile(name)
        assert file is not None
        return bytes(file.read())


def open(spec: str, *, split_seed: int = 0) -> ImageDataset:
    """Open the archive at the path `spec`; a single folder around everything is not part of the sample ids."""
    path = Path(spec).expanduser().resolve()
    if not path.is_file():
        raise DatasetNotFoundError(f"{spec} is not a file. Name a .zip or .tar of class folders, or a folder.")
    with _opened(path) as archive:
        members = [(name, size) for name, size in _members(archive) if is_image(name)]
    bad = [name for name, _ in members if name.startswith("/") or ".." in PurePosixPath(name).parts]
    if bad:
        raise DatasetError(f"{spec} holds members that climb out of it: {', '.join(map(repr, bad[:5]))}. Repack it.")
    prefix = _wrapping([name for name, _ in members])
    files = [(name[len(prefix) :], size) for name, size in members]
    twice = len(files) - len({name for name, _ in files})
    if twice:
        raise DatasetError(f"{spec} holds {twice} members whose name another member has too. Repack it.")
    return dataset_of(
        files,
        name=path.name.split(".")[0],
        spec=str(path),
        split_seed=split_seed,
        reader=lambda paths: ArchiveReader(path, [prefix + name for name in paths], paths),
    )


def _opened(path: Path) -> zipfile.ZipFile | tarfile.TarFile:
    try:
        return zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path)
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise DatasetError(f"{path} is not a .zip or .tar that can be read: {error}") from None


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterable[tuple[str, int]]:
    if isinstance(archive, zipfile.ZipFile):
        return [(info.filename, info.file_size) for info in archive.infolist() if not info.is_dir()]
    return [(info.name.removeprefix("./"), info.size) for info in archive if info.isfile()]


def _wrapping(names: list[str]) -> str:
    tops = {name.split("/")[0] for name in names}
    top = next(iter(tops), "")
    wraps = len(tops) == 1 and top.lower() not in SPLIT_FOLDERS and all(name.count("/") > 1 for name in names)
    return f"{top}/" if wraps else ""
