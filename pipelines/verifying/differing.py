"""How two stores differ: as tables, as one verdict, and as a plain sentence for each thing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from featurecache.reports import Displayed, Table

CALLED = {
    "backbone.name": "the model", "backbone.weights": "the weights", "backbone.transform.mean": "the normalisation (mean)",
    "backbone.transform.std": "the normalisation (std)", "backbone.norm": "the norm of the layers",
    "backbone.batch_size": "the batch size", "backbone.precision": "the arithmetic", "dtype": "the dtype of the features",
    "backbone.decoder": "the decoder of the images", "data.fingerprint": "the data (ids, labels, sizes of the files)",
    "tokens": "the tokens", "layers": "the layers", "views": "the number of views",
}  # fmt: skip
"""Field -> what it is, in words; others are called by their name."""


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
    worst: str = ""
    """The sample with the largest difference."""

    def sentence(self) -> str:
        """Return in words how the rows differ."""
        view = f" in view {self.view}" if self.view else ""
        if not self.differ:
            return f"{self.array}{view}: all {self.rows} rows that both hold are equal bit for bit."
        how = (
            f"{self.beyond} of {self.rows} rows differ by more than rounding" if self.beyond
            else f"{self.differ} of {self.rows} rows differ, within the rounding of their dtype"
        )  # fmt: skip
        return (
            f"{self.array}{view}: {how}; the largest difference is that of {self.worst!r}: {self.relative:.1e} of its size, "
            f"one value by {self.absolute:.3g}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Displayed):
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

    @property
    def sentences(self) -> tuple[str, ...]:
        """Return a sentence for everything that differs: what made them, what they hold, and which rows of which arrays."""
        told = [
            f"{_called(field)}: {_short(here)} in {self.store}, {_short(there)} in {self.other}."
            for field, here, there in (*self.identity, *self.contents)
        ]
        return (*told, *(array.sentence() for array in self.arrays if array.differ))

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
            Table("rows that both hold", titles, arrays, (*self.sentences, self.verdict)),
        ]

    def json(self) -> dict[str, Any]:
        """Return everything the tables say."""
        return {**asdict(self), "same": self.same, "verdict": self.verdict, "sentences": self.sentences}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _called(field: str) -> str:
    return f"{CALLED[field]} ({field})" if field in CALLED else field
