"""How well features explain labels, before anything is trained. One score, one file; the file name is what users type.

A file of this room defines `CONSUMES`: "features" (it scores every vector array of a store on its own) or "logits" (it
scores the answers of the backbone's own head, the array `logits`); `TASKS`, the tasks it knows; `PAPER`, its source; and
one function, `score(rows: Rows) -> float`, finite, higher is better, computed in float64 from rows that it may walk as
often as it needs to. A score that extraction writes defines `saved(store)` instead, which returns its kept entries.
The first sentence of the file is what the ranking says of it.
A score is a function of the committed rows: it is computed once for each array and kept in the store's `scores/NAME.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from featurecache.registry import Registry
from featurecache.stores import FeatureStore
from pipelines.scores._against import Agreement, Point, agreements, measured
from pipelines.scores._keeping import all_kept, kept
from pipelines.scores._rows import Rows

__all__ = [
    "SCORES", "Agreement", "Point", "Rows", "ScoreRows", "agreements", "measured", "refusal", "scores_kept", "scores_of",
]  # fmt: skip

SCORES = Registry("metric", "pipelines.scores")


class ScoreRows(Protocol):
    """What `score` in every file of this room must accept."""

    def __call__(self, rows: Rows) -> float:
        """Return the score of one array; higher is better."""


def scores_of(store: FeatureStore, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return metric -> one entry an array (array, layer, token, score, rows) of a finished store; computes what is not kept.

    Entries are over the readable, labelled rows of the training split.
    """
    return kept(store, {name: SCORES.load(name) for name in names})


def scores_kept(store: FeatureStore, names: Sequence[str]) -> bool:
    """Return whether everything that `scores_of` would return is kept beside the store."""
    return all_kept(store, {name: SCORES.load(name) for name in names})


def refusal(store: FeatureStore, name: str) -> str:
    """Return why the metric `name` cannot score the store, with the way out, or ""."""
    room, task = SCORES.load(name), store.header.task
    if task not in room.TASKS:
        return f"{name} scores {' and '.join(room.TASKS)} only, and {store.path} holds a {task} task."
    if room.CONSUMES == "logits" and "logits" not in {spec.name for spec in store.header.arrays}:
        return (
            f"{name} needs the logits of the backbone's own head, and {store.path} holds none. "
            "Run its extract-features command again with --logits --extend."
        )
    return ""
