"""Features that are the same in every row, or in every row of a class: the model has seen nothing that tells them apart."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.features import ArraySpec, as_numbers
from featurecache.stores import FeatureStore

log = logging.getLogger("featurecache")

SAMPLED = 64
"""Rows by which nearly every array is known to vary."""
PIECE = 1024
"""Rows that are read together where the sample is equal."""
ROUNDING = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 1e-2}
"""Relative difference of equal rows, by dtype: a result depends on its place in a batch in the last bits."""
SHOWN = 3


def warn_of_constant_features(store: FeatureStore, arrays: Sequence[str] | None = None) -> None:
    """Log what `find_constant_features` finds."""
    for problem in find_constant_features(store, arrays):
        log.warning("%s: %s", store.path, problem)


def find_constant_features(store: FeatureStore, arrays: Sequence[str] | None = None) -> list[str]:
    """Return a sentence for every array (None: all) whose readable rows are equal, or equal within some classes.

    A few rows of each array are read, and all of them only where these are equal. Classes are looked at in the embedding, or
    in the last array where there is none.
    """
    specs = [spec for spec in store.header.arrays if arrays is None or spec.name in arrays]
    rows = np.flatnonzero(store.readable([spec.name for spec in specs], [0]))
    if len(rows) < 2 or not specs:
        return []
    constant = [spec.name for spec in specs if _is_constant(store, spec, rows)]
    found = []
    if constant:
        which = f"every array ({', '.join(constant[:SHOWN])}{', ...' if len(constant) > SHOWN else ''})"
        which = which if len(constant) == len(specs) else ", ".join(constant)
        found.append(f"all {len(rows)} rows of {which} are equal: {WAY_OUT}")
    spec = next((spec for spec in specs if spec.name == "embedding"), specs[-1])
    if store.header.task == "classification" and spec.name not in constant:
        found += _constant_classes(store, spec, rows)
    return found


WAY_OUT = (
    "to the model these pictures are the same. Look at some of them, and at what `featurecache data check` says; values "
    "beyond 8 bits and transparency are read by DATA?range=LOW..HIGH and DATA?alpha=white"
)


def _constant_classes(store: FeatureStore, spec: ArraySpec, rows: npt.NDArray[np.int64]) -> list[str]:
    targets = store.column("target", slice(0, store.header.rows))[rows]
    order = np.argsort(targets, kind="stable")
    names, starts, counts = np.unique(targets[order], return_index=True, return_counts=True)
    several = [(int(k), rows[order[start : start + count]]) for k, start, count in zip(names, starts, counts, strict=True)
               if k >= 0 and count > 1]  # fmt: skip
    if not several:
        return []
    ends = np.array([row for _, members in several for row in (members[0], members[-1])])
    # ascending, as stores read fastest
    sought, back = np.unique(ends, return_inverse=True)
    values = _values(store, spec, sought)[back]
    suspects = [one for i, one in enumerate(several) if _equal(values[2 * i], values[2 * i + 1 : 2 * i + 2], spec)]
    constant = [store.header.class_names[k] for k, members in suspects if _is_constant(store, spec, members)]
    if not constant:
        return []
    more = ", ..." if len(constant) > SHOWN else ""
    shown = ", ".join(map(repr, constant[:SHOWN]))
    return [
        f"in {spec.name} all rows are equal within {len(constant)} of {len(several)} classes ({shown}{more}): {WAY_OUT}"
    ]


def _is_constant(store: FeatureStore, spec: ArraySpec, rows: npt.NDArray[np.int64]) -> bool:
    first = _values(store, spec, rows[:1])[0]
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLED).astype(int))]
    pieces = (rows[start : start + PIECE] for start in range(0, len(rows), PIECE))
    return _equal(first, _values(store, spec, sample), spec) and all(
        _equal(first, _values(store, spec, piece), spec) for piece in pieces
    )


def _values(store: FeatureStore, spec: ArraySpec, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    return as_numbers(store.read(spec.name, rows), spec.dtype).astype(np.float32)


def _equal(first: npt.NDArray[Any], values: npt.NDArray[Any], spec: ArraySpec) -> bool:
    slack = ROUNDING[spec.dtype] * (np.abs(first) + 0.01 * np.abs(first).max(initial=0.0))
    return bool((np.abs(values - first) <= slack).all())
