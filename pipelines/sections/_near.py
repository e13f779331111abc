"""Training rows that lie nearest to some rows, by the cosine of their features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from featurecache.sources.cached import CachedSource, split_rows
from pipelines._rows import labelled_rows
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
    name, train = array_of(run), labelled_rows(run.store, "train")
    source = CachedSource(run.store, [name], train)
    mean = source.statistics()[name][0].flatten()
    asked = CachedSource(run.store, [name], split_rows(run.store, "train", "val", "test")).batch(rows)
    queries = F.normalize(asked.arrays[name].flatten(1) - mean, dim=1)
    best, found = torch.full((len(rows), 0), -2.0), torch.zeros(len(rows), 0, dtype=torch.int64)
    for batch in source.batches(PIECE):
        cosines = queries @ F.normalize(batch.arrays[name].flatten(1) - mean, dim=1).T
        best = torch.cat([best, cosines], 1)
        found = torch.cat([found, torch.from_numpy(batch.rows).expand(len(rows), -1)], 1)
        best, places = best.topk(min(count, best.shape[1]), dim=1)
        found = found.gather(1, places)
    return found.numpy(), best.double().numpy()
