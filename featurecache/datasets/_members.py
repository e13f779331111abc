"""Where the members of a .zip or .tar lie, and their bytes; the archive's own index is read once, when it is opened."""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.datasets._unpacked import plain_tar
from featurecache.errors import DatasetError

LOCAL_HEADER = 30
"""Bytes before the name of a zip's member, in front of its content."""
MOST_LINKS = 40
LONGEST_LINK = 4096
WINDOWS = 0
"""`create_system` of a .zip that was packed there; some programs write backslashes between folders."""
UTF8, UNICODE_PATH = 0x800, 0x7075
"""Flag of a name in UTF-8, and the extra field that holds one."""


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


@dataclass(frozen=True, slots=True)
class Contents:
    """What an archive holds."""

    place: Path
    """The file that the members are read from: the archive, or what it was unpacked to."""
    members: list[Member]
    folders: list[str]


def contents_of(path: Path) -> Contents:
    """Return every file of the archive, links to files as what they point to.

    Raises:
        DatasetError: no .zip or .tar, damaged, encrypted, or compressed so that its members cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            return _of_zip(path)
        plain = plain_tar(path)
        if tarfile.is_tarfile(plain):
            return _of_tar(path, plain)
    except DatasetError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError) as error:
        raise DatasetError(f"{path} is damaged: {error}. Fetch or pack it again.") from None
    raise DatasetError(f"{path} is not a .zip or .tar, or it is cut off. Fetch or pack it again.")


def _of_zip(path: Path) -> Contents:
    with zipfile.ZipFile(path) as archive:
        everything = archive.infolist()
        _check_readable(path, everything)
        names = _zip_names(everything)
        targets = {
            name: os.fsdecode(archive.read(info))
            for name, info in zip(names, everything, strict=True)
            if stat.S_ISLNK(info.external_attr >> 16) and info.file_size < LONGEST_LINK
        }
    pairs = [(name, info) for name, info in zip(names, everything, strict=True) if not name.endswith("/")]
    by_name = dict(pairs)
    found = []
    for name, info in pairs:
        file = by_name.get(_target(name, targets)) if name in targets else info
        found.append(Member(name, -1, -1) if file is None else Member(
            name, file.file_size, file.header_offset,
            file.compress_size, file.compress_type == zipfile.ZIP_DEFLATED, file.CRC,
        ))  # fmt: skip
    return Contents(path, found, [name.rstrip("/") for name in names if name.endswith("/")])


def _check_readable(path: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    for info in infos:
        if info.flag_bits & 1:
            raise DatasetError(f"{path} is encrypted. Unpack it, and name the folder.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DatasetError(f"{path} is compressed by method {info.compress_type}. Pack it as a plain .zip.")


def _zip_names(infos: Sequence[zipfile.ZipInfo]) -> list[str]:
    names = [_zip_name(info) for info in infos]
    if not any("/" in name for name in names) or all(info.create_system == WINDOWS for info in infos):
        names = [name.replace("\\", "/") for name in names]
    return [_relative(name) for name in names]


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return a name in UTF-8 also where a program wrote it so without the flag that says it."""
    if info.flag_bits & UTF8 or info.filename.isascii():
        return info.filename
    extra = info.extra
    while len(extra) >= 4:
        kind, size = (int.from_bytes(extra[at : at + 2], "little") for at in (0, 2))
        if kind == UNICODE_PATH:
            return extra[9 : 4 + size].decode("utf-8", "replace")
        extra = extra[4 + size :]
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except ValueError:  # it is in the code page that the standard names
        return info.filename


def _target(name: str, targets: Mapping[str, str]) -> str:
    """Return the member that a link leads to in the end; "" for one that leads round and round."""
    for _ in range(MOST_LINKS):
        if name not in targets:
            return name
        name = posixpath.normpath(posixpath.join(posixpath.dirname(name), targets[name]))
    return ""


def _of_tar(path: Path, plain: Path) -> Contents:
    with tarfile.open(plain, "r:") as archive:
        infos = archive.getmembers()
        # tarfile takes a damaged header for the end, and would lose what follows without a word
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise DatasetError(f"{path} is damaged: no header at byte {archive.offset}. Fetch or pack it again.")
    by_name = {_relative(info.name): info for info in infos}
    found = [(_relative(info.name), _followed(info, by_name)) for info in infos if not info.isdir()]
    files = [
        Member(name, -1, -1) if info is None else Member(name, info.size, info.offset_data)
        for name, info in found
        if info is None or info.isfile()
    ]
    return Contents(plain, files, [_relative(info.name) for info in infos if info.isdir()])


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


def first_bytes(path: Path, member: Member, count: int) -> bytes:
    """Return at most so many bytes of a member from its start; of a .zip only so much is unpacked.

    Raises:
        OSError, ValueError: as `content`.
    """
    if member.size < 0:
        return b""
    if member.packed < 0:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), min(count, member.size), member.offset)
    if count >= member.size:
        return content(path, member)
    with path.open("rb", buffering=0) as file:
        header = _exactly(file.fileno(), LOCAL_HEADER, member.offset)
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        packed = os.pread(
            file.fileno(), min(member.packed, 2 * count + 1024), member.offset + LOCAL_HEADER + name + extra
        )
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, count) if member.deflated else packed[:count]
    except zlib.error as error:
        raise ValueError(f"its place in the archive is damaged ({error})") from None


def _exactly(descriptor: int, count: int, offset: int) -> bytes:
    found = os.pread(descriptor, count, offset)
    if len(found) != count:
        raise ValueError("the archive ends within it")
    return found
