"""Near-duplicates between the rows that are measured and those that are learnt from, found from the features alone.

Every array is centred, whitened over all rows and brought to length one; their concatenation F makes copies of one picture
stand far above all that is merely alike. A pair scores 2 F_t . F_r - m_t - m_r with m the mean product of a row's ten nearest
on the other side, so that a neighbour must be near, nearer than the next ones, and so seen from both sides. What is usual is
learnt from the store itself: a pair counts where its score is `FAR` times as far above the median best score of the measured
rows as their first quartile is below it, or where the vectors are equal; the lower side, since copies, where there are many,
stretch the upper one. A flip, another size or another encoding mostly stays above that; a picture that has lost most of its
detail does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurecache.casting import as_tensor
from featurecache.features import parse_layer_array
from featurecache.stores import FeatureStore
from pipelines.protocols import Part, Trial

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

FAR = 12.0
EQUAL = 0.999
"""Product from which two rows are one picture, whatever is usual: a copy."""
NEAR = 0.5
"""Product from which a pair that stands out is called a near-duplicate; below it the rows are only similar."""
NEAREST = 10
FLOOR = 1e-3
"""Share of the largest variance below which a direction is not stretched further."""
WIDEST = 4800
"""Numbers of a row; of wider stores some layers are left out, evenly."""
AT_ONCE = 2048
MOST = 10**8
"""Pairs of rows up to which a protocol looks by itself."""
LEAST = 20
"""Measured rows from which what is usual can be known; of fewer only equal rows count."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A measured row and the row that it is a copy of."""

    measured: int
    learnt: int
    similarity: float
    """Product of the whitened vectors of length one; 1 is equal."""
    score: float
    """How far it stands above what is usual, in units of the threshold; 1 is the threshold, infinite an equal row."""

    @property
    def kind(self) -> str:
        """What the rows may be called: a copy where they are as good as equal, a near-duplicate, or only similar."""
        return "copy" if self.similarity >= EQUAL else "near-duplicate" if self.similarity >= NEAR else "similar"


class Whitened:
    """Rows of a store as vectors of length one in which unlike pictures are nearly orthogonal."""

    def __init__(self, store: FeatureStore, rows: Rows) -> None:
        """Learn means and directions from `rows`."""
        self.store = store
        self.arrays = arrays_of(store)
        self._maps = {name: self._map(name, rows) for name in self.arrays}

    def _map(self, name: str, rows: Rows) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        width = self.store.header.array(name).tail[0]
        total, products = np.zeros(width), np.zeros((width, width))
        origin = self._read(name, rows[:1])[0].astype(np.float64)
        for piece in _pieces(rows):
            values = self._read(name, piece).astype(np.float64) - origin
            total += values.sum(0)
            products += values.T @ values
        mean = total / len(rows)
        variances, directions = np.linalg.eigh(products / len(rows) - np.outer(mean, mean))
        floor = max(float(variances[-1]) * FLOOR, np.finfo(np.float64).tiny)
        return mean + origin, directions / np.sqrt(np.maximum(variances, floor))

    def _read(self, name: str, rows: Rows) -> Floats:
        values = as_tensor(self.store.read(name, rows), self.store.header.array(name).dtype).float()
        return np.asarray(values.numpy())

    def of(self, rows: Rows) -> Floats:
        """Return (B, D) vectors of length one."""
        found = []
        for name, (mean, map_) in self._maps.items():
            values = (self._read(name, rows) - mean.astype(np.float32)) @ map_.astype(np.float32)
            length = np.linalg.norm(values, axis=1, keepdims=True)
            found.append(values / np.maximum(length, np.finfo(np.float32).tiny))
        return np.asarray(np.concatenate(found, axis=1) / np.float32(np.sqrt(len(found))), dtype=np.float32)


def arrays_of(store: FeatureStore) -> list[str]:
    """Return the arrays that are compared: layers of the tokens that are one vector, and the embedding if it is none of them."""
    header = store.header
    vectors = {spec.name: spec.tail[0] for spec in header.arrays if len(spec.tail) == 1}
    layers = [name for name in vectors if parse_layer_array(name)]
    if not layers:
        joined = [name for name in vectors if name in ("embedding", "projected")]
        return joined[:1] or list(vectors)[:1]
    # as wide as no layer is: what a projection behind the last one makes, and a mirror image changes it least
    joined = [name for name in ("embedding",) if vectors.get(name, 0) not in {0, *(vectors[name] for name in layers)}]
    room = WIDEST - sum(vectors[name] for name in joined)
    indices = sorted({found[1] for name in layers if (found := parse_layer_array(name))})
    for step in range(1, len(indices) + 1):  # the last layer stays
        kept = set(indices[::-1][::step])
        some = [name for name in layers if (found := parse_layer_array(name)) and found[1] in kept]
        if sum(vectors[name] for name in some) <= room:
            return [*some, *joined]
    return [*some, *joined]


def describe_similarity(arrays: Sequence[str]) -> str:
    """Return what the similarity of two rows is, and the bounds from which they count."""
    of = f"{arrays[0]} to {arrays[-1]}" if len(arrays) > 3 else " and ".join(arrays)
    joined = f", joined ({len(arrays)} arrays)" if len(arrays) > 1 else ""
    return (
        f"Similarity: cosine of {of} as stored, centred and whitened over these rows{joined}. Rows are listed that stand far "
        f"above the usual nearest neighbours: from {EQUAL} on copies, from {NEAR} near-duplicates, below only similar"
    )


def remarks_on(title: str, trials: Sequence[Trial]) -> list[str]:
    """Return what is to be said of tests whose rows have near-duplicates among those that any trial on them learns from."""
    tests: dict[bytes, tuple[Part, list[Rows]]] = {}
    for trial in trials:
        for test in trial.tests.values():
            parts = [part for part in (trial.fold.train, trial.fold.validation) if part is not None]
            near = [part.rows for part in parts if part.store.path == test.store.path]
            tests.setdefault(test.rows.tobytes(), (test, []))[1].extend(near)
    found: list[str] = []
    for test, learnt in tests.values():
        rows = np.unique(np.concatenate(learnt)) if learnt else np.empty(0, dtype=np.int64)
        if len(rows) * len(test.rows) > MOST:
            found.append(
                f"{title}: too large to look for near-duplicates beside it; run: featurecache leaks {test.store.path}"
            )
            continue
        pairs = near_duplicates(test.store, test.rows, rows)
        if pairs:
            found.append(_describe_pairs(title, test, pairs))
    return list(dict.fromkeys(found))


def _describe_pairs(title: str, test: Part, pairs: Sequence[Pair]) -> str:
    ids = test.store.table().sample_id
    first = pairs[0]
    return (
        f"{title}: {len(pairs)} of {len(test.rows)} test rows look like rows that are learnt from ({count_kinds(pairs)}), such "
        f"as {ids[first.measured]} and {ids[first.learnt]} (similarity {first.similarity:.3f}). "
        f"{describe_similarity(arrays_of(test.store))}. All pairs: featurecache leaks {test.store.path}"
    )


def count_kinds(pairs: Sequence[Pair]) -> str:
    """Return how many pairs are of each kind, e.g. "1 copy, 20 near-duplicates, 2 only similar"."""
    counts = Counter(pair.kind for pair in pairs)
    words = {
        "copy": ("copy", "copies"), "near-duplicate": ("near-duplicate", "near-duplicates"),
        "similar": ("only similar", "only similar"),
    }  # fmt: skip
    return ", ".join(f"{counts[kind]} {words[kind][counts[kind] > 1]}" for kind in words if counts[kind])


def near_duplicates(store: FeatureStore, measured: Rows, learnt: Rows) -> list[Pair]:
    """Return at most one pair for every measured row, most alike first."""
    if not len(measured) or not len(learnt):
        return []
    whitened = Whitened(store, np.union1d(measured, learnt))
    best, partner, similarity, nearest = _compared(whitened, measured, learnt)
    scores = best - nearest
    lower, middle = np.quantile(scores, [0.25, 0.5])
    reach = max(FAR * float(middle - lower), np.finfo(np.float32).eps)
    heights = (scores - middle) / reach if len(measured) >= LEAST else np.zeros(len(scores))
    heights[similarity >= EQUAL] = np.inf
    found = [
        Pair(int(measured[i]), int(partner[i]), float(similarity[i]), float(heights[i]))
        for i in np.flatnonzero(heights >= 1)
    ]
    return sorted(found, key=lambda pair: -pair.similarity)


def _compared(whitened: Whitened, measured: Rows, learnt: Rows) -> tuple[Floats, Rows, Floats, Floats]:
    """Return (M,) of the measured rows: best 2 F_t . F_r - m_r, its row, its product, and m_t."""
    ours = np.concatenate([whitened.of(piece) for piece in _pieces(measured)])
    count = len(measured)
    best, similarity = np.full(count, -np.inf, dtype=np.float32), np.zeros(count, dtype=np.float32)
    partner, top = np.zeros(count, dtype=np.int64), np.empty((count, 0), dtype=np.float32)
    for piece in _pieces(learnt):
        products = ours @ whitened.of(piece).T
        seen = 2 * products - _mean_of_nearest(products.T)[None]
        place = seen.argmax(1)
        value = np.take_along_axis(seen, place[:, None], axis=1)[:, 0]
        better = value > best
        best, partner = np.where(better, value, best), np.where(better, piece[place], partner)
        product = np.take_along_axis(products, place[:, None], axis=1)[:, 0]
        similarity = np.where(better, product, similarity)
        top = _largest(np.concatenate([top, _largest(products)], axis=1))
    return best, partner, similarity, top.mean(1)


def _largest(products: Floats) -> Floats:
    count = min(NEAREST, products.shape[1])
    return np.asarray(-np.partition(-products, count - 1, axis=1)[:, :count])


def _mean_of_nearest(products: Floats) -> Floats:
    return np.asarray(_largest(products).mean(1))


def _pieces(rows: Sequence[int] | Rows) -> Iterator[Rows]:
    whole = np.asarray(rows, dtype=np.int64)
    for start in range(0, len(whole), AT_ONCE):
        yield whole[start : start + AT_ONCE]
