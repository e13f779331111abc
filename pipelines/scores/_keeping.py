"""Scores beside the features: each is computed once for an array, and read again from then on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from featurecache.features import ArraySpec, parse_layer_array
from featurecache.scoring import keep_scores, scored_rows
from featurecache.stores import FeatureStore
from pipelines.scores._rows import Rows

Entries = dict[str, dict[str, Any]]
"""Array -> what is kept of its score."""


def kept(store: FeatureStore, rooms: Mapping[str, ModuleType]) -> dict[str, list[dict[str, Any]]]:
    """Return metric -> one entry an array; what is new is written after each array, so that a stopped run goes on."""
    found: dict[str, Entries] = {name: _known(store, name, room) for name, room in rooms.items()}
    rows = scored_rows(store)
    for spec in store.header.arrays:
        fresh = [name for name, room in rooms.items() if _scores(room, spec) and spec.name not in found[name]]
        if not fresh:
            continue
        data = Rows.stored(store, spec, rows)
        for name in fresh:
            found[name][spec.name] = _entry(spec, float(rooms[name].score(data)), len(rows))
            keep_scores(_file(store, name), list(found[name].values()))
    order = [spec.name for spec in store.header.arrays]
    return {name: [entries[array] for array in order if array in entries] for name, entries in found.items()}


def _scores(room: ModuleType, spec: ArraySpec) -> bool:
    wanted = "logits" if room.CONSUMES == "logits" else "features"
    held = "logits" if spec.name == "logits" else "features"
    return not hasattr(room, "saved") and len(spec.tail) == 1 and wanted == held


def _known(store: FeatureStore, name: str, room: ModuleType) -> Entries:
    if hasattr(room, "saved"):
        entries = room.saved(store)
    else:
        path = _file(store, name)
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {entry["array"]: entry for entry in entries}


def _entry(spec: ArraySpec, score: float, rows: int) -> dict[str, Any]:
    token, layer = parse_layer_array(spec.name) or (None, None)
    return {"array": spec.name, "layer": layer, "token": token, "score": score, "rows": rows}


def _file(store: FeatureStore, name: str) -> Path:
    return store.notes / "scores" / f"{name}.json"
