"""The verb `logme`: rank the layers of any number of stores by how well they explain the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.checks import check
from featurecache.errors import StoreContentsError
from featurecache.features import comparable_data, differences
from featurecache.places import Place
from featurecache.reports import Displayed, Table
from featurecache.scoring import scored_rows
from featurecache.stores import FeatureStore, open_store
from featurecache.threads import Computing, heeds_threads
from pipelines.scores import SCORES, Agreement, Point, agreements, measured, refusal, scores_kept, scores_of


@dataclass(frozen=True, kw_only=True)
class RankConfig(Computing):
    """Rank the layers of feature stores by scores such as LogME, from the stores alone: no image is read, no backbone is built."""

    stores: tuple[Place, ...]
    """Stores written by extract-features; s3://bucket/x.zarr and the like are read where they lie."""
    metric: tuple[str, ...] = ()
    """Score to rank by: logme (the default), or another such as h_score or leep, or all; may be given several times, the first sorts."""
    against: tuple[Path, ...] = ()
    """Run of train-head, or folder of runs, to hold the scores against: do they order the arrays as the runs do? May be given several times."""

    def __post_init__(self) -> None:
        check((len(self.stores) > 0, "name at least one store"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport(Displayed):
    """Scores of every array of every store, best first."""

    metrics: tuple[str, ...]
    entries: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    agreements: tuple[Agreement, ...] | None = None
    """How well each score orders what was trained; None where no run was named."""
    runs: tuple[str, ...] = ()
    """What is to be said of the runs."""

    def tables(self) -> list[Table]:
        """Return the ranking, and whether the scores predict where runs were named."""
        rows = [(e["store"], e["backbone"], e["array"], *(_shown(e["scores"].get(name)) for name in self.metrics), e["rows"])
                for e in self.entries]  # fmt: skip
        meanings = [
            f"{name}: {SCORES.summary(name)[0].partition(': ')[2]}, over training rows" for name in self.metrics
        ]
        columns = ("store", "backbone", "array", *self.metrics, "rows")
        tables = [Table("scores", columns, rows, (*meanings, *self.notes))]
        if self.agreements is not None:
            found = [(a.metric, a.head, a.data, a.points, a.tau or "-") for a in self.agreements]
            columns = ("metric", "head", "data", "arrays", "weighted Kendall tau (95 % interval)")
            tables.append(Table("does the score predict?", columns, found, self.runs))
        return tables

    def json(self) -> Any:
        """Return one entry an array, best first; where runs were named, {"scores": those, "against": ..., "notes": ...}."""
        if self.agreements is None:
            return self.entries
        return {"scores": self.entries, "against": [asdict(a) for a in self.agreements], "notes": list(self.runs)}


def _shown(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"


@heeds_threads
def run(config: RankConfig) -> RankReport:
    """Read or compute the scores of every store, rank them, and hold them against runs.

    Raises:
        UnknownNameError: no such metric.
        StoreContentsError: a store is unfinished, has nothing to score, or lacks what a metric that was named needs.
        RunError: a run to hold against did not finish, or is none.
    """
    named = [SCORES.load(name).__name__.rpartition(".")[2] for name in config.metric or ("logme",) if name != "all"]
    every = ["logme", *SCORES.names()] if "all" in config.metric else []
    metrics = tuple(dict.fromkeys([*named, *every]))
    points = [point for folder in config.against for point in measured(folder)]
    stores = [_scorable(path, metrics) for path in config.stores]
    refused = {(store.path, name): reason for store in stores for name in metrics if (reason := refusal(store, name))}
    if problems := [reason for (_, name), reason in refused.items() if name in named]:
        raise StoreContentsError("\n".join(problems))
    ranked = [
        entry for store in stores for entry in _entries(store, [n for n in metrics if (store.path, n) not in refused])
    ]
    for entry in ranked:
        entry["score"] = entry["scores"].get(metrics[0])
    ranked.sort(key=lambda entry: -np.inf if entry["score"] is None else entry["score"], reverse=True)
    metrics = tuple(name for name in metrics if any(name in entry["scores"] for entry in ranked))
    notes = (*(f"Left out: {reason}" for reason in refused.values()), *_strangers(stores))
    if not config.against:
        return RankReport(metrics=metrics, entries=ranked, notes=notes)
    found, remarks = hold_against(points, stores, ranked, metrics)
    return RankReport(metrics=metrics, entries=ranked, notes=notes, agreements=tuple(found), runs=tuple(remarks))


def _scorable(path: Place, metrics: Sequence[str]) -> FeatureStore:
    store = open_store(path)
    gaps = store.missing()
    if gaps:
        raise StoreContentsError(
            f"{path} is not finished: {sum(map(len, gaps))} rows are missing. Run the same extract-features command again."
        )
    if scores_kept(store, metrics):
        return store
    rows = scored_rows(store)
    if not len(rows):
        raise StoreContentsError(f"{path} holds no labelled training rows, so there is nothing to score.")
    if len(np.unique(np.asarray(store.table().target)[rows], axis=0)) < 2:
        raise StoreContentsError(f"all labelled training rows of {path} are alike, so there is nothing to tell apart.")
    return store


def _entries(store: FeatureStore, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return one entry an array: where it is, its scores by metric, and what else LogME tells of it."""
    arrays: dict[str, dict[str, Any]] = {}
    for name, entries in scores_of(store, metrics).items():
        for entry in entries:
            place = {"store": str(store.path), "backbone": store.header.backbone["name"], "score": None, "scores": {}}
            arrays.setdefault(entry["array"], place)
            arrays[entry["array"]]["scores"][name] = entry["score"]
            arrays[entry["array"]] |= {key: value for key, value in entry.items() if key != "score"}
    return list(arrays.values())


def _strangers(stores: Sequence[FeatureStore]) -> list[str]:
    """Return a remark where the stores do not score the same rows with the same labels."""
    first = stores[0]
    others = [
        str(s.path) for s in stores[1:] if comparable_data(s.header.dataset) != comparable_data(first.header.dataset)
    ]
    if not others:
        return []
    return [
        f"{', '.join(others)} and {first.path} hold other data, labels or splits: a score says nothing across data sets, "
        "compare within one."
    ]


def hold_against(
    points: Sequence[Point], stores: Sequence[FeatureStore], ranked: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> tuple[list[Agreement], list[str]]:
    """Return how well each metric orders the arrays as the runs on them do, and what is to be said about it.

    A run counts where it read one array of one of the stores. Scores of logits belong to the backbone as a whole, so they
    are paired with runs on the embedding, of which its own head is a map.
    """
    scores = {(e["store"], e["array"]): e["scores"] for e in ranked}
    homes = {id(point): _home(point, stores) for point in points}
    lost = [f"{point.folder} {homes[id(point)][1]}" for point in points if homes[id(point)][1]]
    found: list[Agreement] = []
    for name in metrics:
        paired = []
        for point in points:
            path, why = homes[id(point)]
            array = _scored_array(name, point.arrays[0])
            score = scores.get((path, array), {}).get(name)
            if not why and score is not None:
                paired.append((point, (path, array), score))
        found += agreements(name, paired)
    remarks = [f"Left out: {reason}." for reason in lost]
    if not found or any(agreement.tau is None for agreement in found):
        remarks.append(
            "A rank agreement needs at least 3 arrays with a run of the same head, not all alike: "
            "train that head on more layers, tokens or stores."
        )
    used = sorted({f"{point.metric} on {point.split}" for point in points if not homes[id(point)][1]})
    return found, [*([f"Runs are compared by {' and '.join(used)}."] if used else []), *remarks]


def _scored_array(metric: str, array: str) -> str:
    return array if SCORES.load(metric).CONSUMES == "features" else "logits" if array == "embedding" else ""


def _home(point: Point, stores: Sequence[FeatureStore]) -> tuple[str, str]:
    """Return (path of the store that a run learned from, why it does not count); one of them is empty."""
    if len(point.arrays) > 1:
        return "", f"reads {len(point.arrays)} arrays, and a score is of one"
    for store in stores:
        header, theirs = store.header, {"backbone": point.backbone, "data": comparable_data(point.data)}
        holds = point.arrays[0] in {spec.name for spec in header.arrays}
        if holds and not differences({"backbone": header.backbone, "data": comparable_data(header.dataset)}, theirs):
            return str(store.path), ""
    return "", "learned from a store that is not among these"
