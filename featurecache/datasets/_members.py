"""Where the members of a .zip or .tar lie, and their bytes; the archive's own index is read once, when it is opened."""

from __future__ import annotations

import os
import posixpath
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import DatasetError

LOCAL_HEADER = 30
"""Bytes before the name of a zip's member, in front of its content."""
MOST_LINKS = 40
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""First bytes of gzip, bzip2, xz and zstd."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive."""

    name: str
    size: int
    """Bytes when unpacked; -1: a link to nothing in the archive."""
    offset: int
    """Of its content in a .tar, of its local header in a .zip."""
    packed: int = -1
    """Bytes in a .zip; -1: it lies in a .tar."""
    deflated: bool = False
    crc: int = 0


def members(path: Path) -> list[Member]:
    """Return every file of the archive, links in a .tar as what they point to.

    Raises:
        DatasetError: no .zip or .tar, damaged, encrypted, or compressed so that single members cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            return _of_zip(path)
        if tarfile.is_tarfile(path):
            return _of_tar(path)
    except DatasetError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError) as error:
        raise DatasetError(f"{path} is damaged: {error}. Fetch or pack it again.") from None
    raise DatasetError(f"{path} is not a .zip or .tar, or it is cut off. Fetch or pack it again.")


def _of_zip(path: Path) -> list[Member]:
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
    for info in infos:
        if info.flag_bits & 1:
            raise DatasetError(f"{path} is encrypted. Unpack it, and name the folder.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DatasetError(f"{path} is compressed by method {info.compress_type}. Pack it as a plain .zip.")
    return [
        Member(
            _relative(info.filename), info.file_size, info.header_offset,
            info.compress_size, info.compress_type == zipfile.ZIP_DEFLATED, info.CRC,
        )
        for info in infos
    ]  # fmt: skip


def _of_tar(path: Path) -> list[Member]:
    with path.open("rb") as file:
        if file.read(6).startswith(COMPRESSED):
            raise DatasetError(
                f"{path} is compressed as a whole, so that reading one image would unpack all those before it. "
                "Unpack it and name the folder, or pack it as a plain .tar or .zip."
            )
    with tarfile.open(path, "r:") as archive:
        infos = archive.getmembers()
        # tarfile takes a damaged header for the end, and would lose what follows without a word
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise DatasetError(f"{path} is damaged: no header at byte {archive.offset}. Fetch or pack it again.")
    by_name = {_relative(info.name): info for info in infos}
    found = [(_relative(info.name), _followed(info, by_name)) for info in infos if not info.isdir()]
    return [
        Member(name, -1, -1) if info is None else Member(name, info.size, info.offset_data)
        for name, info in found
        if info is None or info.isfile()
    ]


def _followed(info: tarfile.TarInfo, by_name: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """Return the file that a link stands for, None for a link to nothing in the archive."""
    found: tarfile.TarInfo | None = info
    for _ in range(MOST_LINKS):
        if found is None or not (found.islnk() or found.issym()):
            return found
        folder = posixpath.dirname(found.name) if found.issym() else ""
        found = by_name.get(posixpath.normpath(posixpath.join(folder, found.linkname)))
    return None


def _relative(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def content(path: Path, member: Member) -> bytes:
    """Return the bytes of a member. Opens the archive anew: safe in every thread and after a fork.

    Raises:
        OSError: the archive cannot be read.
        ValueError: what lies there is not the member.
    """
    if member.size < 0:
        raise ValueError("it is a link to nothing in the archive")
    with path.open("rb", buffering=0) as file:
        if member.packed < 0:
            return _exactly(file.fileno(), member.size, member.offset)
        header = _exactly(file.fileno(), LOCAL_HEADER, member.offset)
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        found = _exactly(file.fileno(), member.packed, member.offset + LOCAL_HEADER + name + extra)
    if member.deflated:
        try:
            found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(found, member.size + 1)
        except zlib.error as error:
            raise ValueError(f"its place in the archive is damaged ({error})") from None
    if len(found) != member.size or zlib.crc32(found) != member.crc:
        raise ValueError("its place in the archive is damaged (the checksum differs)")
    return found


def _exactly(descriptor: int, count: int, offset: int) -> bytes:
    found = os.pread(descriptor, count, offset)
    if len(found) != count:
        raise ValueError("the archive ends within it")
    return found
