"""`provenance.jsonl` in the notes of a store: when, where, by which command and libraries; never part of what is compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROVENANCE = "provenance.jsonl"


def note(notes: Path, facts: Mapping[str, Any]) -> None:
    """Add one line to the provenance in the notes of a store."""
    notes.mkdir(exist_ok=True)
    path = notes / PROVENANCE
    torn = path.exists() and not path.read_bytes().endswith(b"\n")  # by a kill; the next line must not hang on to it
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(facts, default=str) + "\n")


def provenance(notes: Path) -> list[dict[str, Any]]:
    """Return what is known of how a store came about, oldest first; a line that a kill tore is left out."""
    path = notes / PROVENANCE
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
