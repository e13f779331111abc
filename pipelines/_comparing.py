"""Two stores side by side: what made them, what they hold, and in which rows of which arrays they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.features import ArraySpec, Header, as_numbers, differences
from featurecache.reports import Table
from featurecache.stores import FeatureStore

PIECE = 4096
"""Rows held at once."""
SHOWN = 3
ROUNDING: Mapping[str, float] = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-22}
"""What two roundings to a dtype may set a row apart, relative to its norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayDifference:
    """How one view of one array of two stores differs, over the rows that both hold."""

    array: str
    view: int
    rows: int
    """Rows compared."""
    differ: int
    """Rows that are not equal bit for bit; of unlike dtypes, that are not equal as numbers."""
    beyond: int
    """Rows that differ by more than the coarser dtype's rounding."""
    relative: float
    """Largest difference of a row, relative to its norm."""
    absolute: float
    """Largest difference of one value."""
    first: tuple[str, ...]
    """The first samples that differ: beyond the rounding, where there are such."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two stores have in common, and what not."""

    store: str
    other: str
    identity: tuple[tuple[str, Any, Any], ...]
    """(field, here, there) wherever what made the features differs."""
    contents: tuple[tuple[str, Any, Any], ...]
    """(what, here, there) wherever one holds other arrays, views or rows."""
    arrays: tuple[ArrayDifference, ...]

    @property
    def same(self) -> bool:
        """Whether these are the same features, as far as both hold them, within the rounding of their dtype."""
        shared = any(array.rows for array in self.arrays)
        return shared and not self.identity and not any(array.beyond for array in self.arrays)

    @property
    def verdict(self) -> str:
        """Return the answer in one sentence."""
        apart = [array for array in self.arrays if array.differ]
        more = ", though one holds more" if self.contents else ""
        if not any(array.rows for array in self.arrays):
            return "nothing can be compared: no array with rows that both hold"
        if self.identity:
            fields = ", ".join(field for field, _, _ in self.identity)
            values = "their values are equal" if not apart else f"{len(apart)} arrays differ"
            return f"not the same features: {fields} differ; {values}"
        if self.same:
            return f"the same features, {'within the rounding of their dtype' if apart else 'bit for bit'}{more}"
        beyond = [array for array in apart if array.beyond]
        rows = max(array.beyond for array in beyond)
        names = sorted({array.array for array in beyond})
        return f"made in the same way, but not the same features: {', '.join(names)} differ in up to {rows} rows"

    def tables(self) -> list[Table]:
        """Return what differs, and the verdict."""
        columns = (self.store, self.other)
        arrays = [(a.array, a.view, a.rows, a.differ, a.beyond, f"{a.relative:.1e}", f"{a.absolute:.3g}", ", ".join(a.first))
                  for a in self.arrays]  # fmt: skip
        titles = ("array", "view", "rows", "not bit for bit", "beyond rounding", "largest, relative", "value", "first")
        shown = [(field, *map(_short, values)) for field, *values in self.identity]
        held = [(field, *map(_short, values)) for field, *values in self.contents]
        return [
            Table("what made them", ("field", *columns), shown),
            Table("what they hold", ("of", *columns), held),
            Table("rows that both hold", titles, arrays, (self.verdict,)),
        ]

    def json(self) -> dict[str, Any]:
        """Return everything the tables say."""
        return {**asdict(self), "same": self.same, "verdict": self.verdict}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def compared(store: FeatureStore, other: FeatureStore) -> Comparison:
    """Hold two stores of any format against each other; rows are joined by sample id."""
    ours, theirs = _joined(store, other)
    pairs = [
        (spec, {s.name: s for s in other.header.arrays}[spec.name], view)
        for spec in store.header.arrays if spec.name in {s.name for s in other.header.arrays}
        for view in range(min(store.header.views, other.header.views))
    ]  # fmt: skip
    arrays = [_array(store, other, mine, their, view, ours, theirs) for mine, their, view in pairs]
    return Comparison(
        store=str(store.path),
        other=str(other.path),
        identity=tuple(differences(_made_by(store.header), _made_by(other.header))),
        contents=(*_held(store, other), *_shapes(pairs), *_rows(store, other, len(ours))),
        arrays=tuple(array for array in arrays if array is not None),
    )


def _made_by(header: Header) -> dict[str, Any]:
    """Return what made the features: not how much of them a store holds, nor what its data set's folder is called."""
    dtypes = "+".join(sorted({spec.dtype for spec in header.arrays}))
    data = {key: value for key, value in header.dataset.items() if key != "name"}
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


def _rows(store: FeatureStore, other: FeatureStore, shared: int) -> list[tuple[str, Any, Any]]:
    """Return what is to be said of rows that only one holds, or does not hold yet, or skips."""
    found: list[tuple[str, Any, Any]] = []
    if not shared == store.header.rows == other.header.rows:
        found.append(("rows that the other has not", store.header.rows - shared, other.header.rows - shared))
    counts = [
        (sum(map(len, s.missing())), int(sum(str(text).startswith("skipped") for text in s.status())))
        for s in (store, other)
    ]
    for what, here, there in zip(("rows not committed", "rows skipped"), *counts, strict=True):
        if here != there:
            found.append((what, here, there))
    return found


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
    for start in range(0, len(ours), PIECE):
        rows = ours[start : start + PIECE]
        one = store.read(mine.name, rows, view)
        two = other.read(their.name, theirs[start : start + PIECE], view)
        by_row, largest, unlike = _distances(one, mine, two, their)
        apart.append(rows[unlike])
        beyond.append(rows[by_row > bound])
        relative, absolute = max(relative, float(by_row.max())), max(absolute, largest)
    differing, far = (np.concatenate(found) if found else np.empty(0, np.int64) for found in (apart, beyond))
    ids = store.table().sample_id
    first = tuple(str(ids[row]) for row in (far if len(far) else differing)[:SHOWN])
    return ArrayDifference(
        array=mine.name, view=view, rows=len(ours), differ=len(differing), beyond=len(far), relative=relative,
        absolute=absolute, first=first,
    )  # fmt: skip


def _committed(store: FeatureStore, array: str, view: int) -> npt.NDArray[np.bool_]:
    there = np.ones(store.header.rows, bool)
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
