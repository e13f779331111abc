"""Training rows that lie nearest to some rows, by the cosine of their features."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.features import as_numbers
from featurecache.scoring import scored_rows
from featurecache.threads import suited_threads
from pipelines.sections import Run

PIECE = 4096


def array_of(run: Run) -> str:
    """Return the array whose neighbours are looked for: the embedding, else the deepest that the run reads."""
    assert run.store is not None
    held = {spec.name for spec in run.store.header.arrays}
    return "embedding" if "embedding" in held else str(run.record["arrays"][-1])


def nearest_training_rows(
    run: Run, rows: npt.NDArray[np.int64], count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return ((Q, k) training rows, (Q, k) cosines), nearest first; the training rows pass by a few thousand at a time.

    Features are centred by the mean of the training rows: the common part of all images tells nothing of one.
    """
    assert run.store is not None
    name, train = array_of(run), scored_rows(run.store)
    pieces = [train[start : start + PIECE] for start in range(0, len(train), PIECE)]
    best, found = np.empty((len(rows), 0), np.float32), np.empty((len(rows), 0), np.int64)
    with suited_threads(len(train) + len(rows)):
        mean = sum(_values(run, name, piece).sum(0, dtype=np.float64) for piece in pieces) / len(train)
        queries = _directions(_values(run, name, rows) - mean)
        for piece in pieces:
            best = np.concatenate([best, queries @ _directions(_values(run, name, piece) - mean).T], 1)
            found = np.concatenate([found, np.broadcast_to(piece, (len(rows), len(piece)))], 1)
            places = np.argsort(-best, axis=1, kind="stable")[:, :count]
            best, found = np.take_along_axis(best, places, 1), np.take_along_axis(found, places, 1)
    return found, best.astype(np.float64)


def _values(run: Run, name: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """(B, D) features of rows of the store."""
    assert run.store is not None
    values = as_numbers(run.store.read(name, rows), run.store.header.array(name).dtype)
    return values.reshape(len(rows), -1).astype(np.float32)


def _directions(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """(B, D) of length one."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(lengths, 1e-12), np.float32)
