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

PROVENANCE = "provenance.jsonl"


def note(notes: Path, facts: Mapping[str, Any]) -> None:
    """Add one line to the provenance in the notes of a store; what a kill left of an earlier line is cut off first."""
    notes.mkdir(exist_ok=True)
    plain = json.loads(json.dumps(facts, default=str))
    with open(notes / PROVENANCE, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # writers of several shares tell what they do
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps({**plain, "crc32": _checksum(plain)}).encode() + b"\n")


def provenance(notes: Path) -> list[dict[str, Any]]:
    """Return what is known of how a store came about, oldest first; a line that is not as it was written is left out."""
    return [facts for facts in _lines(notes) if facts is not None]


def damaged_lines(notes: Path) -> list[int]:
    """Return the numbers, from 1, of the lines that are not as they were written; not the last one, if a kill tore it."""
    return [number for number, facts in enumerate(_lines(notes), 1) if facts is None]


def _lines(notes: Path) -> list[dict[str, Any] | None]:
    path = notes / PROVENANCE
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return [_read(line) for line in lines[:-1]]


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads(line)
        return facts if facts.pop("crc32") == _checksum(facts) else None
    except (ValueError, LookupError, AttributeError, TypeError):
        return None


def _checksum(facts: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(facts, sort_keys=True).encode()):08x}"
