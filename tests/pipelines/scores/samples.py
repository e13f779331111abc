"""Features with classes in them, and the same rows as a score reads them."""

from __future__ import annotations

import numpy as np

from pipelines.scores import SCORES, Rows


def clusters(count: int = 90, width: int = 6, classes: int = 4, distance: float = 1.5, seed: int = 0):
    """Return (N, D) features around class centres, unequal in scale, far from the origin; and their (N,) classes, unequal in size."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(classes, count, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    centres = distance * draw.normal(size=(classes, width))
    scales = np.linspace(0.5, 2, width)
    return (centres[labels] + draw.normal(size=(count, width))) * scales + 20, labels.astype(np.int64)


def score_of(name: str, values: np.ndarray, targets: np.ndarray, task: str = "classification") -> float:
    """Return the score called `name` of rows in memory."""
    return SCORES.load(name).score(Rows.of(values, targets, task))
