"""Scores beside the features: each is computed once for an array, and read again from then on."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from featurecache.features import ArraySpec, parse_layer_array
from featurecache.scoring import KeptScores, scored_rows
from featurecache.stores import FeatureStore
from featurecache.threads import suited_threads
from pipelines.scores._rows import Rows


def kept(store: FeatureStore, rooms: Mapping[str, ModuleType]) -> dict[str, list[dict[str, Any]]]:
    """Return metric -> one entry an array; what is new is written after each array, so that a stopped run goes on."""
    own = {name: room.saved(store) for name, room in rooms.items() if hasattr(room, "saved")}
    known = {name: KeptScores(store, name) for name in rooms if name not in own}
    rows = None
    for spec in store.header.arrays:
        fresh = [name for name in known if _scores(rooms[name], spec) and spec.name not in known[name].entries]
        if not fresh:
            continue
        rows = scored_rows(store) if rows is None else rows
        data = Rows.stored(store, spec, rows)
        with suited_threads(len(rows), values=spec.tail[0]):
            for name in fresh:
                known[name].add([_entry(spec, float(rooms[name].score(data)), len(rows))])
    return {name: own[name] if name in own else list(known[name].entries.values()) for name in rooms}


def all_kept(store: FeatureStore, rooms: Mapping[str, ModuleType]) -> bool:
    """Return whether every score of every array is there, so that neither features nor labels are to be read."""
    return all(
        {spec.name for spec in store.header.arrays if _scores(room, spec)} <= KeptScores(store, name).entries.keys()
        for name, room in rooms.items()
    )


def _scores(room: ModuleType, spec: ArraySpec) -> bool:
    wanted = "logits" if room.CONSUMES == "logits" else "features"
    held = "logits" if spec.name == "logits" else "features"
    return len(spec.tail) == 1 and wanted == held


def _entry(spec: ArraySpec, score: float, rows: int) -> dict[str, Any]:
    token, layer = parse_layer_array(spec.name) or (None, None)
    return {"array": spec.name, "layer": layer, "token": token, "score": score, "rows": rows}
