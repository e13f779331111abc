"""A second copy of what a store cannot be read without: its metadata, and its ledger as it was when the copy was made.

The first line holds every metadata file, the others are the first lines of the ledger: all of it in a finished store, whose
copy is a function of its content as the ledger is. A ledger only grows until the store is sealed, so one that does not begin
with these lines is damaged. An extension or a deletion makes it anew, with its line. Sealing removes the copy before it replaces the ledger, and then makes it again.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.files import sync_folder, write_atomic
from featurecache.stores import _ledger

COPY = "journal.copy"
ROOT = "zarr.json"


@dataclass(frozen=True, slots=True)
class SecondCopy:
    """A copy of which every line is as it was written."""

    metadata: Mapping[str, bytes]
    """Path of each file of Zarr metadata -> its content."""
    ledger: bytes
    """What the ledger begins with."""


def encoded(metadata: Mapping[str, bytes], ledger: bytes) -> bytes:
    """Return the content of the copy."""
    files = {name: content.decode() for name, content in metadata.items()}
    return _ledger.encode({"kind": "metadata", "files": files}) + ledger


def decoded(content: bytes) -> SecondCopy | None:
    """Return what a copy holds; None where it is not as it was written."""
    lines = content.splitlines(keepends=True)
    records, size = _ledger.good_records(lines)
    if size != len(content) or len(records) < 2 or records[0]["kind"] != "metadata":
        return None
    metadata = {name: text.encode() for name, text in records[0]["files"].items()}
    return SecondCopy(metadata, content[len(lines[0]) :])


def copy_in(folder: Path) -> SecondCopy | None:
    """Return the second copy in the folder of a store; None where there is none, or a damaged one."""
    try:
        return decoded((folder / COPY).read_bytes())
    except FileNotFoundError:
        return None


def contradicts(folder: Path, ledger: Path) -> bool:
    """Return whether the ledger is not one that the second copy, which is whole, was made of."""
    copy = copy_in(folder)
    if copy is None:
        return False
    with ledger.open("rb") as file:
        return file.read(len(copy.ledger)) != copy.ledger


def remove_copy(folder: Path) -> None:
    """Remove the copy of a ledger that is about to be replaced."""
    (folder / COPY).unlink(missing_ok=True)
    sync_folder(folder)


def keep_copy(folder: Path, ledger: Path) -> None:
    """Make the copy of a ledger and of the metadata that it names, unless it is there and knows what it must know.

    That is every extension and every deletion: a ledger that lost the line of one could give back a deleted row.
    Metadata that are not what the ledger says are left out: a copy must not make damage look sound.
    """
    records, good = _ledger.read_records(ledger)
    if (folder / COPY).exists() and not _is_behind(copy_in(folder), records):
        return
    sums = {n: crc for n, crc in _ledger.Committed.replay(records).files.items() if Path(n).name == ROOT}
    contents = {name: (folder / name).read_bytes() for name in sums if (folder / name).exists()}
    sound = {name: content for name, content in contents.items() if zlib.crc32(content) == sums[name]}
    write_atomic(folder / COPY, encoded(sound, ledger.read_bytes()[:good]))


def _is_behind(copy: SecondCopy | None, records: Sequence[_ledger.Record]) -> bool:
    """Return whether the ledger has lines of extensions or deletions that a copy, which is whole, has not."""
    if copy is None:
        return False
    return any(record["kind"] in ("extended", "deleted") for record in records[copy.ledger.count(b"\n") :])
