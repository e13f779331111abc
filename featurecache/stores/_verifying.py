"""Whether a store is what was written: every byte that matters, compared with the ledger, and every difference named."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featurecache.features import ArraySpec, Header
from featurecache.stores import _ledger
from featurecache.stores._constants import CLASSES, ROOM, Cut
from featurecache.stores._copying import NOTES, header_from
from featurecache.stores._creation import LEDGER, ROOT, STAGED, name_of, staged
from featurecache.stores._layout import status_files
from featurecache.stores._locking import LOCK
from featurecache.stores._second_copy import COPY, SecondCopy, decoded, encoded

Way = Literal["", "journal", "data", "classes", "rows", "scores"]
WAYS: Mapping[Way, str] = {
    "": "no",
    "journal": "from the store itself",
    "data": "from the data set",
    "classes": "computed again from the class names",
    "rows": "computed again from the images",
    "scores": "computed again from the features",
}
"""What a damaged thing can be mended from -> how a report says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One thing of a store that is not what was written."""

    file: str
    """Path below the store, or name of the file that is the store."""
    what: str
    """What is wrong with it."""
    way: Way
    """What it can be mended from; "" where it cannot."""
    array: str = ""
    rows: range | None = None
    """Rows that cannot be trusted, where it is a chunk of features."""
    view: int = 0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Examined:
    """What an examination found."""

    damages: tuple[Damage, ...]
    notes: Path
    """Folder of provenance and scores."""
    header: Header | None = None
    """None where nothing can be read from the store."""
    state: _ledger.Committed | None = None
    finished: bool = False
    ledger: bytes = b""
    """As it should be, from either copy."""
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    """Path of each file of metadata -> its content, proven by the ledger."""
    strangers: tuple[str, ...] = ()
    """Files that do not belong to the store."""
    remarks: tuple[str, ...] = ()


Seen = Callable[[int], None]
"""Called with the bytes that were read since the last call."""


def examine(path: Path, seen: Seen = lambda count: None) -> Examined:
    """Compare every file of a Zarr store with its ledger; of an unfinished one, what is committed."""
    content = _read(path / LEDGER) or b""
    copied = _read(path / COPY)
    copy = decoded(copied) if copied is not None else None
    ledger, damages, remarks = _trusted(content, copy)
    records, _ = _ledger.good_records(ledger.splitlines(keepends=True))
    if not records:
        return Examined(
            notes=path, damages=(*damages, _bad(LEDGER, "holds no readable record, and there is no second copy", ""))
        )
    state = _ledger.Committed.replay(records)
    metadata, found = _metadata(path, records, state, copy)
    damages += found
    if ROOT not in metadata:
        return Examined(notes=path, damages=tuple(damages), state=state, ledger=ledger)
    header = header_from(path, metadata[ROOT])
    if state.finished:
        canonical = b"".join(_ledger.encode(record) for record in state.records(header.rows))
        if canonical != ledger:
            damages.append(
                _bad(LEDGER, "is not the ledger of a finished store, though it says the store is", "journal")
            )
        ledger = canonical
    if copied is None and (path / LOCK).exists():
        remarks.append("there is no second copy of the ledger yet: the next writer makes it")
    else:
        damages += _second(copied, copy, encoded(metadata, ledger) if state.finished else None)
    begun = set(begun_pieces(path, header, state))
    if begun:
        remarks.append("an extension or a deletion was cut off while it ended: the next writer finishes it")
    damages += [bad for bad in _table(path, state, seen) if bad.file not in begun]
    if state.finished:
        damages += _status(path, header, state, metadata)
    chunks = [bad for spec in header.arrays for bad in _chunks(path, header, spec, state, metadata, seen)]
    damages += [bad for bad in chunks if bad.file not in begun]
    return Examined(
        notes=path, damages=tuple(damages), header=header, state=state, finished=state.finished, ledger=ledger, metadata=metadata,
        strangers=_strangers(path, header, state, metadata, begun), remarks=tuple(remarks),
    )  # fmt: skip


def _bad(file: str, what: str, way: Way, **more: Any) -> Damage:
    return Damage(file=file, what=what, way=way, **more)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _trusted(content: bytes, copy: SecondCopy | None) -> tuple[bytes, list[Damage], list[str]]:
    """Return (the ledger as far as it can be trusted, damage of it, what else is to be said of it)."""
    damages: list[Damage] = []
    if copy is not None and not content.startswith(copy.ledger):
        what = "is gone" if not content else "is not the ledger that was written"
        damages.append(_bad(LEDGER, f"{what} (line {_first_difference(content, copy.ledger)})", "journal"))
        content = copy.ledger + content[len(copy.ledger) :]
    lines = content.splitlines(keepends=True)
    records, good = _ledger.good_records(lines)
    behind = content[good:]
    if not behind or not records:
        return content[:good], damages, []
    if records[-1]["kind"] != "finished" and b"\n" not in behind:
        torn = f"{LEDGER} ends in a torn line, as a kill leaves it: the next writer cuts it off"
        return content[:good], damages, [torn]
    what = (
        f"line {len(records) + 1} cannot be trusted, so that it and what follows never happened ({len(behind)} bytes)"
    )
    return content[:good], [*damages, _bad(LEDGER, what, "journal")], []


def _first_difference(ours: bytes, theirs: bytes) -> int:
    a, b = ours.split(b"\n"), theirs.split(b"\n")
    return next((n for n, pair in enumerate(zip(a, b, strict=False), 1) if pair[0] != pair[1]), min(len(a), len(b)))


def _metadata(
    path: Path, records: list[_ledger.Record], state: _ledger.Committed, copy: SecondCopy | None
) -> tuple[dict[str, bytes], list[Damage]]:
    """Return the content of every file of metadata, as far as anything still tells it, and those that are damaged."""
    sums = {name: crc for name, crc in state.files.items() if Path(name).name == ROOT}
    told = dict(copy.metadata) if copy else {}
    for record in records:
        if record["kind"] == "extended":
            told |= {name: text.encode() for name, text in record["files"].items()}
    found = {name: _read(path / name) for name in sums}
    root = _first_sound([found.get(ROOT), told.get(ROOT)], sums.get(ROOT))
    told_by_root = _consolidated(root) if root is not None else {}
    known: dict[str, bytes] = {}
    damages: list[Damage] = []
    begun = _begun_extension(records, found.get(ROOT))
    for name, crc in sums.items():
        sound = _first_sound([found[name], told.get(name), told_by_root.get(name)], crc)
        if sound is not None:
            known[name] = sound
        if sound is None or (sound != found[name] and not begun(name, found[name])):
            damages.append(_bad(name, _gone_or_changed(found[name]), "journal" if sound is not None else ""))
    return known, damages


def _begun_extension(records: list[_ledger.Record], root: bytes | None) -> Callable[[str, bytes | None], bool]:
    """Return what tells, of a file of metadata, whether an extension that was cut off has not come to it yet."""
    crc = zlib.crc32(root) if root is not None else None
    before = None if crc is None else _ledger.as_of(records, ROOT, crc)
    if before is None or len(before) == len(records):
        return lambda name, content: False
    sums = _ledger.Committed.replay(before).files

    def untouched(name: str, content: bytes | None) -> bool:
        return content is None if name not in sums else content is not None and zlib.crc32(content) == sums[name]

    return untouched


def _first_sound(contents: list[bytes | None], crc: int | None) -> bytes | None:
    return next((content for content in contents if content is not None and zlib.crc32(content) == crc), None)


def _consolidated(root: bytes) -> dict[str, bytes]:
    """Return the metadata files that the root repeats, in the form in which zarr writes them."""
    whole = json.loads(root).get("consolidated_metadata") or {"metadata": {}}
    return {f"{name}/{ROOT}": json.dumps(node, indent=2).encode() for name, node in whole["metadata"].items()}


def _gone_or_changed(content: bytes | None) -> str:
    return "is gone" if content is None else "is not the file that was written"


def _second(content: bytes | None, copy: SecondCopy | None, expected: bytes | None) -> list[Damage]:
    if content is None:
        return [_bad(COPY, "is gone: there is no second copy of the ledger", "journal")]
    if copy is None or (expected is not None and content != expected):
        return [_bad(COPY, "is not the file that was written", "journal")]
    return []


def _table(path: Path, state: _ledger.Committed, seen: Seen) -> Iterator[Damage]:
    """Yield damage of the row table and of the arrays of the classes."""
    for name, crc in state.files.items():
        if Path(name).name == ROOT:
            continue
        content = _read(path / name)
        seen(len(content or b""))
        if content is None or zlib.crc32(content) != crc:
            said = name.startswith(f"{ROOM}/")
            array = name.partition("/c/")[0]
            yield _bad(name, _gone_or_changed(content), "classes" if said else "data", array=array)


def status_of(state: _ledger.Committed, rows: int) -> list[str]:
    """Return what the ledger of a finished store says of every row."""
    status = [f"skipped: {state.skipped[row]}" if row in state.skipped else "ok" for row in range(rows)]
    for row in state.deleted:
        status[row] = "deleted"
    return status


def _status(path: Path, header: Header, state: _ledger.Committed, metadata: Mapping[str, bytes]) -> Iterator[Damage]:
    if f"status/{ROOT}" not in metadata:
        return
    for name, expected in status_files(status_of(state, header.rows), extent_of_chunk(metadata, "status")).items():
        content = _read(path / name)
        if content != expected:
            yield _bad(name, _gone_or_changed(content), "journal", array="status")


def extent_of_chunk(metadata: Mapping[str, bytes], array: str, axis: int = 0) -> int:
    """Return how many rows a chunk of an array holds, or its extent along another axis."""
    return int(json.loads(metadata[f"{array}/{ROOT}"])["chunk_grid"]["configuration"]["chunk_shape"][axis])


def place_of(key: str, rows_per_chunk: int, count: int) -> tuple[range, int]:
    """Return (rows, view) of the `count` committed rows of a chunk."""
    index, view = map(int, key.split("/")[1:3])
    start = index * rows_per_chunk
    return range(start, start + count), view


def _chunks(
    path: Path, header: Header, spec: ArraySpec, state: _ledger.Committed, metadata: Mapping[str, bytes], seen: Seen
) -> Iterator[Damage]:
    """Yield damage of the committed rows of one array, and of what fills up its last chunk."""
    if f"{spec.name}/{ROOT}" not in metadata:
        return  # the metadata itself is told as damaged, and as nothing that can be mended
    size = extent_of_chunk(metadata, spec.name)
    for key, (count, crc) in sorted(state.chunks.get(spec.name, {}).items()):
        rows, view = place_of(key, size, count)
        what, is_filling = judged(_read(path / spec.name / key), spec, size, count, crc, whole=state.finished)
        seen(size * spec.row_bytes)
        if what:
            place = {"array": spec.name, "rows": None if is_filling else rows, "view": view}
            yield _bad(f"{spec.name}/{key}", what, "journal" if is_filling else "rows", **place)


def judged(content: bytes | None, spec: ArraySpec, size: int, count: int, crc: int, *, whole: bool) -> tuple[str, bool]:
    """Return (what is wrong with a chunk, or "", whether that is only behind its rows, where there should be zeros).

    `whole`: nothing is written any more, so that what is behind the committed rows counts too.
    """
    if content is None:
        return "is gone", False
    expected, rows = size * spec.row_bytes, count * spec.row_bytes
    if zlib.crc32(memoryview(content)[:rows]) != crc or len(content) < rows:
        short = f"has {len(content)} bytes instead of {expected}" if len(content) != expected else ""
        return short or "does not hold the rows that were committed", False
    if len(content) != expected:
        return f"has {len(content)} bytes instead of {expected}", True
    if whole and np.frombuffer(content, np.uint8)[rows:].any():
        return "is not zero behind its rows", True
    return "", False


def begun_pieces(path: Path, header: Header, state: _ledger.Committed) -> Iterator[str]:
    """Yield the files that the ledger names and a growth or a deletion, cut off, left whole under temporary names."""
    for file in path.glob(f".*{STAGED}"):
        name, content = name_of(file), file.read_bytes()
        array, _, key = name.partition("/c/")
        rows, crc = state.chunks.get(array, {}).get(f"c/{key}", (0, None))
        if name in state.files:
            crc, size = state.files[name], len(content)
        else:
            size = rows * header.array(array).row_bytes if crc is not None else 0
        if zlib.crc32(memoryview(content)[:size]) == crc:
            yield name


def _strangers(
    path: Path, header: Header, state: _ledger.Committed, metadata: Mapping[str, bytes], begun: Iterable[str]
) -> tuple[str, ...]:
    """Return the files that are of no use to the store."""
    ours = {LEDGER, COPY, LOCK, *state.files, *(staged(path, name).name for name in begun)}
    if f"status/{ROOT}" in metadata:
        ours |= set(status_files([""] * header.rows, extent_of_chunk(metadata, "status")))
    for spec in header.constants:
        if f"{spec.name}/{ROOT}" in metadata:
            ours |= {name for name, _ in Cut(spec, extent_of_chunk(metadata, spec.name, CLASSES)).pieces()}
    found = []
    for file in sorted(p for p in path.rglob("*") if not p.is_dir()):
        name = file.relative_to(path).as_posix()
        array, _, key = name.partition("/c/")
        if name in ours or file.relative_to(path).parts[0] in NOTES:
            continue
        if not _is_chunk(header, metadata, array, key):
            found.append(name)
    return tuple(found)


def _is_chunk(header: Header, metadata: Mapping[str, bytes], array: str, key: str) -> bool:
    """Return whether an array of rows has, or will have, a chunk of that key."""
    specs = {spec.name: spec for spec in header.arrays}
    if array not in specs or f"{array}/{ROOT}" not in metadata:
        return False
    parts = key.split("/")
    count = -(-header.rows // extent_of_chunk(metadata, array))
    limits = (count, header.views, *(1 for _ in specs[array].tail))
    return len(parts) == len(limits) and all(p.isdecimal() and int(p) < m for p, m in zip(parts, limits, strict=True))
