"""The verb `leaks`: pictures of one split that are near-duplicates of those of another, found from a store alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featurecache.checks import check
from featurecache.places import Place
from featurecache.reports import Displayed, Table
from featurecache.stores import open_store
from featurecache.threads import Computing, heeds_threads, suited_threads
from pipelines._roles import read_store_in_roles
from pipelines.protocols import rows_of
from pipelines.trialling.leaks import Pair, arrays_of, describe_similarity, near_duplicates

SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class LeaksConfig(Computing):
    """Find test images that are near-duplicates of training images: copied, re-encoded, resized, flipped; no image is read."""

    store: Place
    """Store written by extract-features."""
    test: str = "test"
    """Split whose rows are looked for."""
    test_split: str | None = None
    """Split to look for instead, as training measures it: rows held out of train to choose on count as train."""
    train: tuple[str, ...] = ("train", "val")
    """Splits in which they are looked for; may be given several times."""

    def __post_init__(self) -> None:
        default = self.test == LeaksConfig.test and self.train == LeaksConfig.train
        check(
            (self.test not in self.train, f"{self.test} would be compared with itself"),
            (self.test_split is None or default, "test_split and test or train exclude each other: give one of them"),
        )


@dataclass(frozen=True, slots=True)
class LeaksReport(Displayed):
    """Pairs of samples that show one picture."""

    store: str
    compared: tuple[int, int]
    """Rows that were looked for, and rows in which."""
    pairs: Sequence[dict[str, Any]]
    arrays: Sequence[str] = ()
    """Arrays whose rows were compared."""
    remarks: Sequence[str] = ()

    def tables(self) -> list[Table]:
        """Return the pairs that are most alike."""
        columns = ("test", "train", "similarity", "kind", "labels")
        rows = [
            (pair["test"], pair["train"], f"{pair['similarity']:.3f}", pair["kind"], pair["labels"])
            for pair in self.pairs[:SHOWN]
        ]
        measured, learnt = self.compared
        kinds = Counter(pair["kind"] for pair in self.pairs)
        said = [f"{len(self.pairs) - kinds['similar']} of {measured} rows have a near-duplicate among {learnt}"]
        said += [f"{kinds['copy']} of them are copies: their features are as good as equal"] if kinds["copy"] else []
        said += [f"{kinds['similar']} more stand out and are only similar"] if kinds["similar"] else []
        more = [f"{SHOWN} are shown; --json has all"] if len(self.pairs) > SHOWN else []
        return [
            Table("near-duplicates", columns, rows, [*self.remarks, *said, *more, describe_similarity(self.arrays)])
        ]

    def json(self) -> dict[str, Any]:
        """Return every pair."""
        return {
            "store": self.store, "compared": list(self.compared), "arrays": list(self.arrays),
            "similarity": describe_similarity(self.arrays), "remarks": list(self.remarks), "pairs": list(self.pairs),
        }  # fmt: skip


@heeds_threads
def run(config: LeaksConfig) -> LeaksReport:
    """Compare the splits.

    Raises:
        StoreContentsError: the store is unfinished, or has no such split.
    """
    store, roles = open_store(config.store), None
    if (config.test, config.train) == (LeaksConfig.test, LeaksConfig.train):
        store, roles = read_store_in_roles(store, config.test_split)
    known = {str(name) for name in np.asarray(store.table().split)}
    among = [name for name in config.train if name in known or config.train != LeaksConfig.train]
    measured, learnt = rows_of(store, config.test), rows_of(store, *(among or config.train))
    table = store.table()

    def told(pair: Pair) -> dict[str, Any]:
        ids = [str(table.sample_id[row]) for row in (pair.measured, pair.learnt)]
        alike = np.array_equal(table.target[pair.measured], table.target[pair.learnt])
        found = {name: value for name, value in asdict(pair).items() if name == "similarity"}
        return {
            "test": ids[0],
            "train": ids[1],
            **found,
            "kind": pair.kind,
            "labels": "equal" if alike else "different",
        }

    with suited_threads(len(measured) + len(learnt)):
        pairs = [told(pair) for pair in near_duplicates(store, measured, learnt)]
    remarks = [roles.remark] if roles else []
    return LeaksReport(str(config.store), (len(measured), len(learnt)), pairs, arrays_of(store), remarks)
