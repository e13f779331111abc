"""The verb `logme`: rank the layers of any number of stores by how well they explain the labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.checks import check
from featurecache.errors import StoreContentsError
from featurecache.reports import Table
from featurecache.stores import open_store
from save_features import saved_scores


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Rank the layers of feature stores by LogME, from the stores alone: no image is read, no backbone is built."""

    stores: tuple[Path, ...]
    """Stores written by extract-features."""

    def __post_init__(self) -> None:
        check((len(self.stores) > 0, "name at least one store"))


@dataclass(frozen=True, slots=True)
class RankReport:
    """Scores of every layer of every store, best first."""

    scores: list[dict[str, Any]]

    def tables(self) -> list[Table]:
        """Return the ranking."""
        rows = [(s["store"], s["backbone"], s["array"], f"{s['score']:.4f}", s["rows"]) for s in self.scores]
        note = "LogME of the training rows, corrected evidence per row, mean over classes: higher is better."
        return [Table("LogME", ("store", "backbone", "array", "LogME", "rows"), rows, (note,))]

    def json(self) -> list[dict[str, Any]]:
        """Return one entry an array, best first, with the evidence of every class."""
        return self.scores


def run(config: RankConfig) -> RankReport:
    """Read or compute the scores of every store and rank them."""
    found = [score for path in config.stores for score in _scores(path)]
    return RankReport(sorted(found, key=lambda score: -score["score"]))


def _scores(path: Path) -> list[dict[str, Any]]:
    store = open_store(path)
    gaps = store.missing()
    if gaps:
        raise StoreContentsError(
            f"{path} is not finished: {sum(map(len, gaps))} rows are missing. Run the same extract-features command again."
        )
    scores = saved_scores(store)
    if not scores:
        raise StoreContentsError(f"{path} holds no labelled training rows, so there is nothing to score.")
    return [{"store": str(path), "backbone": store.header.backbone["name"], **score} for score in scores]
