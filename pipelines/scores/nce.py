"""NCE: minus the entropy of the labels given the class that the backbone's own head predicts; higher is better.

With z the argmax of the logits (N, Z) and y the labels, -H(Y | Z) = sum over (c, z) of p(c, z) ln p(c | z), at most zero.
"""

from __future__ import annotations

import numpy as np

from pipelines.scores._rows import Rows

CONSUMES = "logits"
TASKS = ("classification",)
PAPER = "Tran et al., ICCV 2019"


def score(rows: Rows) -> float:
    """Return the negative conditional entropy from logits (N, Z); one pass, memory K Z."""
    counts = np.zeros((rows.num_targets, rows.width))
    for logits, labels in rows.pieces():
        np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
    own, predicted = counts.nonzero()
    pairs = counts[own, predicted]
    return float(pairs @ np.log(pairs / counts.sum(axis=0)[predicted])) / len(rows)
