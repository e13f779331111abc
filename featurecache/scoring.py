"""LogME of what a store holds: one streaming pass over the stored rows of an array, kept beside the features."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import logme
from featurecache.errors import StoreNotFoundError
from featurecache.features import ArraySpec, as_numbers, parse_layer_array
from featurecache.files import json_bytes, write_atomic
from featurecache.stores import FeatureStore, digests, store_exists
from featurecache.threads import suited_threads

log = logging.getLogger("featurecache")

PIECE = 65536
"""Rows whose targets are read together; whole batches of 4096, so that sums do not depend on it."""
VERSIONS: Mapping[str, int] = {"logme": 2}
"""Metric -> version of its formula, 1 where none is named. Raise it when the formula would give another number: kept scores of
another version are computed again. LogME 2 divides features, and columns of a regression, by their root mean square."""


def saved_scores(store: FeatureStore) -> list[dict[str, Any]]:
    """Return the LogME of every vector array of a finished store over its labelled training rows.

    [] where nothing can be told apart: fewer than two such rows, or all of one class. An array is scored once, when its
    score is first asked for, and its score is kept beside it; an array is a vector array when one row is (D,): the
    embedding and each layer's cls and mean.
    """
    kept = KeptScores(store, "logme")
    arrays = [spec for spec in store.header.arrays if len(spec.tail) == 1 and spec.name != "logits"]
    fresh = [spec for spec in arrays if spec.name not in kept.entries]
    rows = scored_rows(store) if fresh else np.empty(0, np.int64)
    if _differ(store, rows):
        with suited_threads(len(rows), values=sum(spec.tail[0] for spec in fresh)):
            for spec in fresh:  # each is kept at once, so that a stopped run goes on
                kept.add([score_array(store, spec, rows)])
    return [kept.entries[spec.name] for spec in arrays if spec.name in kept.entries]


class KeptScores:
    """The scores of one metric that are kept beside a store, as far as they are of the rows that it holds now."""

    def __init__(self, store: FeatureStore, metric: str) -> None:
        self.path, self._store = store.notes / "scores" / f"{metric}.json", store.path
        self._version = VERSIONS.get(metric, 1)
        self._digests = digests(store)
        read = read_scores(self.path) or {}
        self.entries: dict[str, dict[str, Any]] = {
            entry["array"]: entry
            for entry in read.get("scores", ())
            if read["version"] == self._version and read["of"].get(entry["array"]) == self._digests.get(entry["array"])
        }
        """Array -> what is kept of its score, in the order of the store."""

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Keep more; where nothing can be written, say so, for the scores themselves are there."""
        self.entries |= {entry["array"]: entry for entry in entries}
        self.entries = {name: self.entries[name] for name in self._digests if name in self.entries}
        of = {name: self._digests[name] for name in self.entries}
        content = {"version": self._version, "of": of, "scores": list(self.entries.values())}
        if not store_exists(self._store):  # else its folder would stand there again, with nothing but scores in it
            raise StoreNotFoundError(f"{self._store} was removed while it was scored.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json_bytes({"crc32": _checksum(content), **content}))
        except OSError as error:
            log.warning("scores are not kept in %s: %s", self.path, error.strerror or error)


def read_scores(path: Path) -> dict[str, Any] | None:
    """Return what a file of scores holds; None where there is none, or where it is not as it was written."""
    try:
        found = json.loads(path.read_bytes())
        return found if found.pop("crc32") == _checksum(found) else None
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None


def is_whole(path: Path) -> bool:
    """Return whether a file of scores is as it was written, byte for byte."""
    content = read_scores(path)
    return content is not None and path.read_bytes() == json_bytes({"crc32": _checksum(content), **content})


def _checksum(content: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def scored_rows(store: FeatureStore) -> npt.NDArray[np.int64]:
    """Return the readable, labelled rows of the training split, ascending."""
    scored = store.readable()
    for start in range(0, len(scored), PIECE):
        piece = slice(start, start + PIECE)
        targets = store.column("target", piece)
        labelled = targets >= 0 if targets.ndim == 1 else ~np.isnan(targets).any(1)
        scored[piece] &= (store.column("split", piece) == "train") & labelled
    return np.flatnonzero(scored)


def _pieces(store: FeatureStore, rows: npt.NDArray[np.int64]) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Yield places in `rows` with the targets of the rows there, without the row table and without those of all at once."""
    for start in range(0, len(rows), PIECE):
        places = slice(start, min(start + PIECE, len(rows)))
        first = int(rows[start])
        yield places, store.column("target", slice(first, int(rows[places.stop - 1]) + 1))[rows[places] - first]


def _differ(store: FeatureStore, rows: npt.NDArray[np.int64]) -> bool:
    """Return whether some rows, given in ascending order, have different targets."""
    if not len(rows):
        return False
    first = store.column("target", slice(int(rows[0]), int(rows[0]) + 1))[0]
    return any(bool((targets != first).any()) for _, targets in _pieces(store, rows))


def score_array(store: FeatureStore, spec: ArraySpec, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return the LogME of one array over `rows` as stored, in one pass, in float64.

    Features are divided by their root mean square, and so are the columns of a regression: the guards in LogME's updates have
    a unit, and would else decide the order of arrays whose values are large or small. The evidence is that of the columns as
    they are given.
    """
    header = store.header
    units = _column_units(store, rows) if header.task == "regression" else np.ones(1)
    moments = logme.Moments(spec.tail[0], len(header.class_names), task=header.task)
    for places, targets in _pieces(store, rows):
        for start in range(0, len(targets), 4096):
            piece = rows[places][start : start + 4096]
            block = targets[start : start + 4096]
            moments.update(
                as_numbers(store.read(spec.name, piece), spec.dtype),
                block / units if header.task == "regression" else block,
            )
    fitted = logme.LogME(task=header.task, rescale=True).fit_moments(moments)
    evidence = fitted.evidence_ - np.log(units)
    token, layer = parse_layer_array(spec.name) or (None, None)
    return {
        "array": spec.name,
        "layer": layer,
        "token": token,
        "score": float(evidence.mean()),
        "evidence": [float(value) for value in evidence],
        "rows": len(rows),
    }


def _column_units(store: FeatureStore, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(K,) root mean square of every target column over `rows`; 1 for a column of zeros."""
    squares = sum(
        (np.square(targets, dtype=np.float64).sum(axis=0) for _, targets in _pieces(store, rows)), np.zeros(1)
    )
    units = np.sqrt(squares / max(len(rows), 1))
    return np.where(units > 0, units, 1.0)
