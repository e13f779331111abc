"""H-score: how much of the features' variance, each direction in its own unit, lies between classes; higher is better.

    H = trace(pinv(cov f) cov(E[f | y]))

It lies between 0 and the lesser of D and K - 1, and no invertible affine map of the features changes it.
The covariance is inverted as published, by pseudo-inverse and without shrinkage: directions below round-off are
dropped, small ones count in full. With fewer rows than features it is therefore near K - 1 whatever the features.
"""

from __future__ import annotations

import numpy as np

from pipelines.scores._rows import Rows

CONSUMES = "features"
TASKS = ("classification",)
PAPER = "Bao et al., ICIP 2019"


def score(rows: Rows) -> float:
    """Return the H-score of features (N, D) from their moments."""
    spread = rows.spread
    variances, directions = np.linalg.eigh(spread.covariance)
    kept = variances > variances[-1] * max(len(rows), rows.width) * np.finfo(np.float64).eps
    between = spread.shares @ ((spread.class_means - spread.mean) @ directions[:, kept]) ** 2
    return float((between / variances[kept]).sum())
