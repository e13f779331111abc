"""LEEP: log-likelihood of the labels when each is guessed from the classes of the backbone's own head; higher is better.

With P the softmax of the logits (N, Z) and y the labels,

    p(c, z) = sum over rows of class c of P[i, z] / N,    LEEP = mean over i of ln sum_z P[i, z] p(y_i | z)

which is at most zero. A source class without any mass says nothing and is left out (as published it gives NaN).
"""

from __future__ import annotations

import numpy as np

from pipelines.scores._rows import Floats, Rows

CONSUMES = "logits"
TASKS = ("classification",)
PAPER = "Nguyen et al., ICML 2020"


def score(rows: Rows) -> float:
    """Return LEEP from logits (N, Z); two passes, memory K Z."""
    joint = np.zeros((rows.num_targets, rows.width))
    for logits, labels in rows.pieces():
        np.add.at(joint, labels, _softmax(logits))
    mass = joint.sum(axis=0)
    given = np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)
    total = 0.0
    for logits, labels in rows.pieces():
        total += float(np.log((_softmax(logits) * given[labels]).sum(axis=1)).sum())
    return total / len(rows)


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
