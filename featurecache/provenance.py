"""`provenance.jsonl` in the notes of a store: when, where, by which command and libraries; never part of what is compared.

Every line is a JSON object whose `crc32` is that of the JSON of everything else, keys sorted, so that a change shows.
"""

from __future__ import annotations

import fcntl
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurecache.files import write_atomic

PROVENANCE = "provenance.jsonl"


def note(notes: Path, facts: Mapping[str, Any]) -> None:
    """Add one line to the provenance in the notes of a store; what a kill left of an earlier line is cut off first."""
    notes.mkdir(exist_ok=True)
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    with open(notes / PROVENANCE, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # writers of several shares tell what they do
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(_line(plain))


def _line(plain: Mapping[str, Any]) -> bytes:
    return json.dumps({**plain, "crc32": _checksum(plain)}).encode() + b"\n"


def provenance(notes: Path) -> list[dict[str, Any]]:
    """Return what is known of how a store came about, oldest first; a line that is not as it was written is left out."""
    return [facts for facts in _lines(notes) if facts is not None]


def damaged_lines(notes: Path) -> list[int]:
    """Return the numbers, from 1, of the lines that are not as they were written; not the last one, if a kill tore it."""
    found = [number for number, facts in enumerate(_lines(notes), 1) if facts is None]
    *whole, last = _contents(notes)
    # a whole line, and something else where its end was
    return [*found, len(whole) + 1] if last and _read(last[:-1]) is not None else found


def mend_lines(notes: Path) -> list[int]:
    """Mend the lines that differ in one bit from what was written, which a checksum tells; return the others' numbers."""
    damaged = damaged_lines(notes)
    if damaged:
        lines = _contents(notes)
        ended = [line + b"\n" for line in lines[:-1]] + lines[-1:]
        for number in damaged:
            ended[number - 1] = _with_one_bit_less(ended[number - 1])
        write_atomic(notes / PROVENANCE, b"".join(ended))
    return damaged_lines(notes)


def _with_one_bit_less(line: bytes) -> bytes:
    """Return the only line, or lines, that one flipped bit could have made this of; itself where there is none."""
    for place in range(len(line)):
        for bit in range(8):
            tried = line[:place] + bytes([line[place] ^ 1 << bit]) + line[place + 1 :]
            if tried.endswith(b"\n") and all(_read(part) is not None for part in tried[:-1].split(b"\n")):
                return tried
    return line


def _lines(notes: Path) -> list[dict[str, Any] | None]:
    return [_read(line) for line in _contents(notes)[:-1]]


def _contents(notes: Path) -> list[bytes]:
    """Return every line without its end, and what is behind the last end of a line."""
    path = notes / PROVENANCE
    return path.read_bytes().split(b"\n") if path.exists() else [b""]


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads(line)
        return facts if facts.pop("crc32") == _checksum(facts) and _line(facts)[:-1] == line else None
    except (ValueError, LookupError, AttributeError, TypeError):
        return None


def _checksum(facts: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(facts, sort_keys=True).encode()):08x}"
