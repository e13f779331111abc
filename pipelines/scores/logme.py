"""LogME: log evidence of the labels given features of unit root mean square, by row and mean over classes; higher is better.

`logme.py` at the root is the algorithm; extraction writes its scores, and this file reads them. They are those of
`LogME(rescale=True)`: else the order of layers would depend on the unit of their features.
"""

from __future__ import annotations

from typing import Any

from featurecache.scoring import saved_scores
from featurecache.stores import FeatureStore

CONSUMES = "features"
TASKS = ("classification", "multilabel", "regression")
PAPER = "You et al., JMLR 2022"


def saved(store: FeatureStore) -> list[dict[str, Any]]:
    """Return the entries that extraction wrote, with the evidence of every class; computes those that are not there."""
    return saved_scores(store)
