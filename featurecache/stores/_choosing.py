"""The rows that a user means: readable ones, of one split, as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.casting import as_numbers


def readable_rows(store: Any, array: str, split: str | None, view: int) -> npt.NDArray[Any]:
    """Return the committed `ok` rows of one array, (N, ...), bfloat16 as float32; `split` keeps one split."""
    keep = store.status() == "ok"
    if split is not None:
        keep &= np.asarray(store.table().split) == split
    return as_numbers(store.read(array, np.flatnonzero(keep), view), store.header.array(array).dtype)
