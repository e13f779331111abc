"""LogME of what a store holds: one streaming pass over the stored rows of an array, kept beside the features."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import logme
from featurecache.casting import as_numbers
from featurecache.features import ArraySpec, parse_layer_array
from featurecache.files import json_bytes, write_atomic
from featurecache.stores import FeatureStore

log = logging.getLogger("featurecache")


def saved_scores(store: FeatureStore) -> list[dict[str, Any]]:
    """Return the LogME of every vector array of a finished store over its labelled training rows.

    [] where nothing can be told apart: fewer than two such rows, or all of one class. An array is scored once, when its
    score is first asked for, and its score is kept beside it; an array is a vector array when one row is (D,): the
    embedding and each layer's cls and mean.
    """
    path = store.notes / "scores" / "logme.json"
    kept = {score["array"]: score for score in json.loads(path.read_text())} if path.exists() else {}
    arrays = [spec for spec in store.header.arrays if len(spec.tail) == 1 and spec.name != "logits"]
    fresh = [spec for spec in arrays if spec.name not in kept]
    rows = scored_rows(store) if fresh else np.empty(0, np.int64)
    if len(rows) and len(np.unique(np.asarray(store.table().target)[rows], axis=0)) > 1:
        kept |= {spec.name: score_array(store, spec, rows) for spec in fresh}
        keep_scores(path, [kept[spec.name] for spec in arrays])
    return [kept[spec.name] for spec in arrays if spec.name in kept]


def keep_scores(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write scores beside the features; where nothing can be written, say so, for the scores themselves are there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json_bytes(entries))
    except OSError as error:
        log.warning("scores are not kept in %s: %s", path, error.strerror or error)


def scored_rows(store: FeatureStore) -> npt.NDArray[np.int64]:
    """Return the readable, labelled rows of the training split, ascending."""
    table = store.table()
    targets = np.asarray(table.target)
    labelled = targets >= 0 if targets.ndim == 1 else ~np.isnan(targets.astype(np.float64)).any(1)
    return np.flatnonzero((store.status() == "ok") & (np.asarray(table.split) == "train") & labelled)


def score_array(store: FeatureStore, spec: ArraySpec, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return the LogME of one array over `rows` as stored, in one pass, in float64."""
    header, targets = store.header, np.asarray(store.table().target)[rows]
    moments = logme.Moments(spec.tail[0], len(header.class_names), task=header.task)
    for start in range(0, len(rows), 4096):
        piece = slice(start, start + 4096)
        moments.update(as_numbers(store.read(spec.name, rows[piece]), spec.dtype), targets[piece])
    fitted = logme.LogME(task=header.task).fit_moments(moments)
    token, layer = parse_layer_array(spec.name) or (None, None)
    return {
        "array": spec.name,
        "layer": layer,
        "token": token,
        "score": float(fitted.score_),
        "evidence": [float(value) for value in fitted.evidence_],
        "rows": len(rows),
    }
