"""Does a score predict? Rank agreement between scores of arrays and what heads trained on those arrays reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.bootstrap import DIFFERENCE, DRAWS, draw_group_weights, drawn_interval
from featurecache.errors import RunError
from featurecache.metrics import Measured, primary
from featurecache.runs import CONFIG, read_run

LEAST = 3
"""Points below which a rank agreement says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What one finished run reached on one array."""

    folder: Path
    head: str
    arrays: tuple[str, ...]
    backbone: Mapping[str, Any]
    """Identity of the features it read."""
    data: Mapping[str, Any]
    """Identity of the data it learned from."""
    metric: str
    """What is compared: the primary metric of the task."""
    split: str
    """Where it was measured: test, or val where there are no test rows."""
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How well one score ranks arrays as the heads of one kind do, on one data set."""

    metric: str
    head: str
    data: str
    points: int
    """Arrays with both a score and a run."""
    tau: Measured | None
    """Weighted Kendall tau with its 95 % interval; None where there are too few points, or all are equal."""


def measured(folder: Path) -> list[Point]:
    """Return what the run in `folder`, or every run in a folder of runs, reached.

    Raises:
        RunError: there is no finished run, or one without a measured row.
    """
    inside = sorted(path.parent for path in folder.glob(f"*/{CONFIG}")) if not (folder / CONFIG).exists() else []
    return [_point(run) for run in inside or [folder]]


def _point(folder: Path) -> Point:
    _, record = read_run(folder)
    metric = primary(record["task"])
    split = next((split for split in ("test", "val") if split in record["metrics"]), None)
    value = record["metrics"][split][metric]["value"] if split else None
    if split is None or value is None:
        raise RunError(f"the run in {folder} has no {metric} on test or val rows, so no score can be held against it.")
    return Point(
        folder=folder, head=record["head"], arrays=tuple(record["arrays"]), backbone=record["features"]["backbone"],
        data=record["features"]["data"], metric=metric, split=split, value=value,
    )  # fmt: skip


def agreements(metric: str, paired: Sequence[tuple[Point, Any, float]]) -> list[Agreement]:
    """Return one agreement for each data set and head among `paired`: (run, key of what it read, score of that).

    Several runs on one array count as one point, their mean.
    """
    kinds: dict[tuple[str, str], dict[Any, list[tuple[float, float]]]] = {}
    for point, key, score in paired:
        arrays = kinds.setdefault((str(point.data.get("name")), point.head), {})
        arrays.setdefault(key, []).append((score, point.value))
    found = []
    for (data, head), arrays in kinds.items():
        scores, reached = np.array([np.mean(values, axis=0) for values in arrays.values()]).T
        tau = _interval(scores, reached) if len(arrays) >= LEAST else None
        found.append(Agreement(metric=metric, head=head, data=data, points=len(arrays), tau=tau))
    return found


def _interval(scores: npt.NDArray[Any], reached: npt.NDArray[Any]) -> Measured | None:
    value, count = weighted_tau(scores, reached), len(scores)
    if not np.isfinite(value):
        return None
    weights = np.concatenate(list(draw_group_weights(count, DRAWS, "bootstrap", "tau", 0))).astype(int)
    drawn = np.array([weighted_tau(np.repeat(scores, times), np.repeat(reached, times)) for times in weights])
    return Measured(value, *drawn_interval(value, drawn, DIFFERENCE, units=count))


def weighted_tau(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Return the weighted Kendall tau of two (N,) rankings (Vigna, 2015); NaN where one of them is constant.

    A pair weighs 1/(r + 1) + 1/(s + 1) by the places of its two, so that the best count most; it is the mean of the places
    by either ranking, ties broken by the other, and it is what `scipy.stats.weightedtau` computes by default.
    """
    return (_tau_by(first, second) + _tau_by(second, first)) / 2


def _tau_by(ranked: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    weight = np.empty(len(ranked))
    weight[np.lexsort((other, ranked))[::-1]] = 1 / np.arange(1, len(ranked) + 1)
    pairs = weight[:, None] + weight
    one, two = (np.sign(values[:, None] - values) for values in (ranked, other))
    norm = np.sqrt((pairs * one**2).sum() * (pairs * two**2).sum())
    return float((pairs * one * two).sum() / norm) if norm else float("nan")
