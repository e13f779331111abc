"""`provenance.jsonl` beside the features: when, where, by which command and libraries; never part of what is compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROVENANCE = "provenance.jsonl"


def note(store: Path, facts: Mapping[str, Any]) -> None:
    """Add one line to the provenance of a store."""
    with open(store / PROVENANCE, "a", encoding="utf-8") as file:
        file.write(json.dumps(facts, default=str) + "\n")


def provenance(store: Path) -> list[dict[str, Any]]:
    """Return what is known of how a store came about, oldest first; a torn last line is left out."""
    path = store / PROVENANCE
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
