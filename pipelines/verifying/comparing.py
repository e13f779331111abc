"""Two stores side by side: what made them, what they hold, and in which rows of which arrays they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.features import ArraySpec, Header, as_numbers, comparable_data, differences
from featurecache.stores import FeatureStore
from pipelines.verifying.differing import ArrayDifference, Comparison

PIECE = 4096
"""Rows held at once."""
SHOWN = 3
GONE = ("skipped", "deleted")
ROUNDING: Mapping[str, float] = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-22}
"""What two roundings to a dtype may set a row apart, relative to its norm."""


def compared(store: FeatureStore, other: FeatureStore) -> Comparison:
    """Hold two stores of any format against each other; rows are joined by sample id."""
    ours, theirs = _joined(store, other)
    pairs = [
        (spec, {s.name: s for s in other.header.arrays}[spec.name], view)
        for spec in store.header.arrays if spec.name in {s.name for s in other.header.arrays}
        for view in range(min(store.header.views, other.header.views))
    ]  # fmt: skip
    arrays = [_array(store, other, mine, their, view, ours, theirs) for mine, their, view in pairs]
    made = differences(_made_by(store.header), _made_by(other.header))
    # which samples a data set has is what a store holds of it, and decides its fingerprint
    whole = len(ours) == store.header.rows == other.header.rows
    of_samples = [one for one in made if one[0].startswith("data.") and not whole]
    return Comparison(
        store=str(store.path),
        other=str(other.path),
        identity=tuple(one for one in made if one not in of_samples),
        contents=(*_held(store, other), *_shapes(pairs), *of_samples, *_rows(store, other, ours, theirs)),
        arrays=tuple(array for array in arrays if array is not None),
    )


def _made_by(header: Header) -> dict[str, Any]:
    """Return what made the features: not how much of them a store holds, nor what its data set's folder is called."""
    dtypes = "+".join(sorted({spec.dtype for spec in header.arrays}))
    data = comparable_data(header.dataset)
    layers = {f"{layer.index:02d}": layer.norm for layer in header.layers}
    made = {"backbone": dict(header.backbone), "data": data, "task": header.task, "class_names": header.class_names}
    return {**made, "dtype": dtypes, "norm of layer": layers}


def _held(store: FeatureStore, other: FeatureStore) -> list[tuple[str, Any, Any]]:
    mine, theirs = store.header, other.header
    found: list[tuple[str, Any, Any]] = []
    names, others = ([s.name for s in (*h.arrays, *h.constants)] for h in (mine, theirs))
    for what, here, there in (
        ("arrays", [n for n in names if n not in others], [n for n in others if n not in names]),
        ("tokens", "+".join(mine.tokens), "+".join(theirs.tokens)),
        ("layers", [layer.index for layer in mine.layers], [layer.index for layer in theirs.layers]),
        ("views", mine.views, theirs.views),
        ("prompts", list(mine.prompts), list(theirs.prompts)),
    ):
        if here != there:
            found.append((what, here, there))
    return found


def _shapes(pairs: Sequence[tuple[ArraySpec, ArraySpec, int]]) -> list[tuple[str, Any, Any]]:
    return [
        (f"shape of {mine.name}", mine.tail, their.tail)
        for mine, their, view in pairs
        if not view and mine.tail != their.tail
    ]


def _rows(
    store: FeatureStore, other: FeatureStore, ours: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]
) -> list[tuple[str, Any, Any]]:
    """Return what is to be said of rows that only one holds, does not hold yet, skips or has deleted, and of their order."""
    found: list[tuple[str, Any, Any]] = []
    alone = [_alone(store, ours), _alone(other, theirs)]
    if any(alone):
        found.append(("rows that the other has not", alone[0] or "0", alone[1] or "0"))
    if len(theirs) and (np.diff(theirs) < 0).any():
        found.append(("order of the rows", "its own", "another; rows are joined by sample id"))
    targets = [np.asarray(one.table().target)[rows] for one, rows in ((store, ours), (other, theirs))]
    if targets[0].shape != targets[1].shape or not np.array_equal(
        targets[0], targets[1], equal_nan=targets[0].dtype.kind == "f"
    ):
        found.append(("labels of the samples that both have", "its own", "others"))
    counts = [
        (sum(map(len, s.missing())), *(int(sum(str(text).startswith(kind) for text in s.status())) for kind in GONE))
        for s in (store, other)
    ]
    for what, here, there in zip(("rows not committed", "rows skipped", "rows deleted"), *counts, strict=True):
        if here != there:
            found.append((what, here, there))
    return found


def _alone(store: FeatureStore, shared: npt.NDArray[np.int64]) -> str:
    """Return how many rows a store has besides the shared ones, and the first of them; "" for none."""
    rows = np.setdiff1d(np.arange(store.header.rows), shared)
    return f"{len(rows)}, the first is {str(store.table().sample_id[int(rows[0])])!r}" if len(rows) else ""


def _joined(store: FeatureStore, other: FeatureStore) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the row numbers, in each store, of the samples that both have, in the order of the first."""
    places = {str(name): row for row, name in enumerate(other.table().sample_id)}
    pairs = [(row, places[str(name)]) for row, name in enumerate(store.table().sample_id) if str(name) in places]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _array(
    store: FeatureStore, other: FeatureStore, mine: ArraySpec, their: ArraySpec, view: int,
    ours: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64],
) -> ArrayDifference | None:  # fmt: skip
    """Compare one view of one array over the rows that both have committed; None where the shapes do not fit."""
    if mine.tail != their.tail:
        return None
    both = _committed(store, mine.name, view)[ours] & _committed(other, their.name, view)[theirs]
    ours, theirs = ours[both], theirs[both]
    bound = max(ROUNDING[mine.dtype], ROUNDING[their.dtype])
    apart: list[npt.NDArray[np.int64]] = []
    beyond: list[npt.NDArray[np.int64]] = []
    relative = absolute = 0.0
    worst, ids = "", store.table().sample_id
    for start in range(0, len(ours), PIECE):
        rows = ours[start : start + PIECE]
        one = store.read(mine.name, rows, view)
        two = other.read(their.name, theirs[start : start + PIECE], view)
        by_row, largest, unlike = _distances(one, mine, two, their)
        apart.append(rows[unlike])
        beyond.append(rows[by_row > bound])
        if by_row.max() > relative:
            relative, worst = float(by_row.max()), str(ids[rows[int(by_row.argmax())]])
        absolute = max(absolute, largest)
    differing, far = (np.concatenate(found) if found else np.empty(0, np.int64) for found in (apart, beyond))
    first = tuple(str(ids[row]) for row in (far if len(far) else differing)[:SHOWN])
    return ArrayDifference(
        array=mine.name, view=view, rows=len(ours), differ=len(differing), beyond=len(far), relative=relative,
        absolute=absolute, first=first, worst=worst,
    )  # fmt: skip


def _committed(store: FeatureStore, array: str, view: int) -> npt.NDArray[np.bool_]:
    """Return (N,) which rows can be compared: deleted ones are zero."""
    there = np.asarray(store.status([array], [view]) != "deleted")
    for gap in store.missing([array], [view]):
        there[gap.start : gap.stop] = False
    return there


def _distances(
    one: npt.NDArray[Any], mine: ArraySpec, two: npt.NDArray[Any], their: ArraySpec
) -> tuple[npt.NDArray[np.float64], float, npt.NDArray[np.bool_]]:
    """Return (difference of each row by its norm, largest of one value, which rows are not equal)."""
    a = as_numbers(one, mine.dtype).reshape(len(one), -1).astype(np.float64)
    b = as_numbers(two, their.dtype).reshape(len(two), -1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(a - b)
    gaps[np.isnan(gaps)] = np.inf  # of damaged bytes
    sizes = np.maximum(np.maximum(_norms(a), _norms(b)), np.finfo(np.float64).tiny)
    if mine.dtype == their.dtype:
        unlike = (one.reshape(len(one), -1).view(np.uint8) != two.reshape(len(two), -1).view(np.uint8)).any(1)
    else:
        unlike = gaps.any(1)
    return _norms(gaps) / sizes, float(gaps.max(initial=0.0)), unlike


def _norms(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.norm(np.nan_to_num(values, posinf=1e300, neginf=-1e300), axis=1))
