"""The column `split` of a store written anew: metadata alone, whole or not at all, whatever ends the process in between.

New pieces of the column are written under temporary names; one ledger line, which carries the new root of the metadata and
the checksums, makes them true; then they get their names, the root last. Whoever writes next finishes that where it was cut
off. From the ledger line on every reader sees the new splits, wherever their pieces lie: a reader never mixes two divisions.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import StoreDamagedError, StoreError
from featurecache.features import Header
from featurecache.files import sync_folder
from featurecache.stores import _ledger
from featurecache.stores._creation import (
    LEDGER,
    RESPLIT,
    ROOT,
    checked,
    replace_metadata,
    staged,
    unstage,
    write_durably,
)
from featurecache.stores._layout import column_piece, extended_metadata

SPLIT = "split"


def replace_split(path: Path, state: _ledger.Committed, header: Header, split: Sequence[str], chunk: int) -> None:
    """Give the rows of the store at `path` these splits and this header; the caller holds the lock and opens it again."""
    metadata = {name: checked(path, name, crc) for name, crc in state.files.items() if Path(name).name == ROOT}
    texts = {name: content.decode() for name, content in extended_metadata(metadata, header, 1).items()}
    if texts.keys() - {ROOT}:
        raise StoreError(f"a division of {path} would change {', '.join(sorted(texts.keys() - {ROOT}))}.")
    starts = range(0, len(split), chunk)
    pieces = dict(
        column_piece(SPLIT, number, split[start : start + chunk], chunk) for number, start in enumerate(starts)
    )
    sums = {name: zlib.crc32(content) for name, content in pieces.items()}
    new = [name for name, crc in sums.items() if state.files.get(name) != crc]
    for name in new:
        write_durably(staged(path, name), pieces[name])
    sync_folder(path)
    record = {"kind": "extended", "files": texts, "sums": {name: sums[name] for name in new}, RESPLIT: True}
    _ledger.append(path / LEDGER, record)
    unstage(path, new)
    replace_metadata(path, texts)


def check_resplit(held: Header, header: Header, split: Sequence[str]) -> None:
    """Refuse a header that differs in more than the identity of the data set, or splits of another number of rows.

    Raises:
        StoreError: says so.
    """
    if {**header.to_json(), "dataset": {}} != {**held.to_json(), "dataset": {}} or len(split) != header.rows:
        raise StoreError("a division of a store changes the splits of its rows; nothing else of it may change")


def read_split(path: Path, files: Mapping[str, int], chunk: int, rows: range) -> npt.NDArray[Any]:
    """Return the splits of `rows`, all of one division: the one that `files` tells by checksums, or the one of now.

    The bytes that are checked are the bytes that are read: another process may give the store other splits meanwhile.

    Raises:
        StoreDamagedError: they are not what was written.
    """
    for _ in range(5):
        try:
            return _joined(path, files, chunk, rows)
        except StoreDamagedError as damaged:  # it has grown or was divided anew since, or a division was cut off
            known, why = files, damaged
            files = _ledger.Committed.replay(_ledger.read_records(path / LEDGER)[0]).files
            if files == known and not any(path.glob(f".{SPLIT}~*")):
                raise
    raise why


def _joined(path: Path, files: Mapping[str, int], chunk: int, rows: range) -> npt.NDArray[Any]:
    found = np.empty(len(rows), dtype=np.dtypes.StringDType())
    for number in range(rows.start // chunk, -(-rows.stop // chunk)):
        start = number * chunk
        texts = _decode(_piece(path, f"{SPLIT}/c/{number}", files))
        first, last = max(start, rows.start), min(start + chunk, rows.stop)
        found[first - rows.start : last - rows.start] = texts[first - start : last - start]
    return found


def _piece(path: Path, name: str, files: Mapping[str, int]) -> bytes:
    """Return the content of a piece of the column, which may still have a temporary name."""
    try:
        content = staged(path, name).read_bytes()
    except FileNotFoundError:
        content = b""
    return content if content and zlib.crc32(content) == files[name] else checked(path, name, files[name])


def _decode(content: bytes) -> list[str]:
    """Return the texts of one chunk of zarr's codec `vlen-utf8`: their number, then length and bytes of each."""
    place, texts = 4, []
    for _ in range(int.from_bytes(content[:4], "little")):
        length = int.from_bytes(content[place : place + 4], "little")
        texts.append(content[place + 4 : place + 4 + length].decode())
        place += 4 + length
    return texts
