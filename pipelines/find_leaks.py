"""The verb `leaks`: pictures of one split that are near-duplicates of those of another, found from a store alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featurecache.checks import check
from featurecache.places import Place
from featurecache.reports import Table
from featurecache.stores import open_store
from featurecache.threads import Computing, heeds_threads, suited_threads
from pipelines.protocols import rows_of
from pipelines.trialling.leaks import Pair, near_duplicates

SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class LeaksConfig(Computing):
    """Find test images that are copies of training images: re-encoded, resized, flipped; no image is read."""

    store: Place
    """Store written by extract-features."""
    test: str = "test"
    """Split whose rows are looked for."""
    train: tuple[str, ...] = ("train", "val")
    """Splits in which they are looked for; may be given several times."""

    def __post_init__(self) -> None:
        check((self.test not in self.train, f"{self.test} would be compared with itself"))


@dataclass(frozen=True, slots=True)
class LeaksReport:
    """Pairs of samples that show one picture."""

    store: str
    compared: tuple[int, int]
    """Rows that were looked for, and rows in which."""
    pairs: Sequence[dict[str, Any]]

    def tables(self) -> list[Table]:
        """Return the pairs that are most alike."""
        rows = [
            (pair["test"], pair["train"], f"{pair['similarity']:.3f}", pair["labels"]) for pair in self.pairs[:SHOWN]
        ]
        measured, learnt = self.compared
        said = f"{len(self.pairs)} of {measured} rows have a near-duplicate among {learnt}"
        more = [f"{SHOWN} are shown; --json has all"] if len(self.pairs) > SHOWN else []
        return [Table("near-duplicates", ("test", "train", "similarity", "labels"), rows, [said, *more])]

    def json(self) -> dict[str, Any]:
        """Return every pair."""
        return {"store": self.store, "compared": list(self.compared), "pairs": list(self.pairs)}


@heeds_threads
def run(config: LeaksConfig) -> LeaksReport:
    """Compare the splits.

    Raises:
        StoreContentsError: the store is unfinished, or has no such split.
    """
    store = open_store(config.store)
    known = {str(name) for name in np.asarray(store.table().split)}
    among = [name for name in config.train if name in known or config.train != LeaksConfig.train]
    measured, learnt = rows_of(store, config.test), rows_of(store, *(among or config.train))
    table = store.table()

    def told(pair: Pair) -> dict[str, Any]:
        ids = [str(table.sample_id[row]) for row in (pair.measured, pair.learnt)]
        alike = np.array_equal(table.target[pair.measured], table.target[pair.learnt])
        found = {name: value for name, value in asdict(pair).items() if name == "similarity"}
        return {"test": ids[0], "train": ids[1], **found, "labels": "equal" if alike else "different"}

    with suited_threads(len(measured) + len(learnt)):
        pairs = [told(pair) for pair in near_duplicates(store, measured, learnt)]
    return LeaksReport(str(config.store), (len(measured), len(learnt)), pairs)
