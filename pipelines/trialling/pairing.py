"""How sure a protocol's numbers are: bootstrap over the tested groups, drawn alike for all heads, and over the trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.datasets import RowTable
from featurecache.features import Task
from featurecache.metrics import METRICS, Metric, primary
from featurecache.seeding import generator

if TYPE_CHECKING:
    from pipelines.protocols import Part

Floats = npt.NDArray[np.float64]
DRAWS = 1000
AT_ONCE = 50
"""Draws whose weights are in memory together."""
Derived = Mapping[str, Callable[[Mapping[str, float]], float]]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What one head said of one test of one trial."""

    keys: npt.NDArray[Any]
    """(N,) group of every row, its own id where it has none."""
    hits: Floats | None
    """(N,) of a classification; else None."""
    metric: Metric | None
    """Weights -> primary metric, of other tasks."""

    @classmethod
    def of(cls, folder: Path, part: Part) -> Outcome:
        """Read the predictions of a folder."""
        return cls.read(folder, part.store.header.task, part.store.table(), part.rows)

    @classmethod
    def read(cls, folder: Path, task: Task, table: RowTable, rows: npt.NDArray[np.int64]) -> Outcome:
        """Read the predictions of a folder for some rows of a table."""
        names = [str(name) for name in np.asarray(table.group)[rows]]
        keys = np.array([name or f"\0{row}" for name, row in zip(names, rows.tolist(), strict=True)])
        import pyarrow.parquet as pq

        said = pq.read_table(folder / "predictions.parquet")
        if task == "classification":
            right = np.array(said["label"].to_pylist()) == np.array(said["pred"].to_pylist())
            return cls(keys, right.astype(np.float64), None)
        columns = [name for name in said.column_names if name.startswith(("prob_", "value_"))]
        scores = np.stack([said[name].to_numpy() for name in columns], axis=1).astype(np.float64)
        if task == "multilabel":
            scores = np.log(np.clip(scores, 1e-12, None)) - np.log(np.clip(1 - scores, 1e-12, None))
        targets = np.asarray(table.target)[rows]
        return cls(keys, None, METRICS[task](scores, targets)[primary(task)])


def drawn(outcomes: Sequence[Sequence[Outcome]]) -> Floats:
    """Return (1 + DRAWS, T, H) values of T trials of H heads; the first are those of the rows as they are.

    A draw is of the groups of all trials together, the same for all heads.
    """
    everything = np.unique(np.concatenate([of_heads[0].keys for of_heads in outcomes]))
    members = [np.searchsorted(everything, of_heads[0].keys) for of_heads in outcomes]
    values = np.empty((1 + DRAWS, len(outcomes), len(outcomes[0])))
    draw = generator("protocol bootstrap", len(everything))
    weights = np.ones((1, len(everything)))
    for start in range(0, 1 + DRAWS, AT_ONCE):
        rest = min(AT_ONCE, 1 + DRAWS - start) - len(weights)
        picked = draw.integers(0, len(everything), (rest, len(everything)))
        counts = np.stack([np.bincount(one, minlength=len(everything)) for one in picked]) if rest else weights[:0]
        weights = np.concatenate([weights, counts]).astype(np.float64)
        for place, (of_heads, member) in enumerate(zip(outcomes, members, strict=True)):
            values[start : start + len(weights), place] = _weighted(of_heads, member, weights)
        weights = weights[:0]
    return values


def _weighted(of_heads: Sequence[Outcome], member: npt.NDArray[np.intp], weights: Floats) -> Floats:
    """Return (D, H) values of one trial under (D, G) weights of the groups."""
    groups = weights.shape[1]
    rows = weights @ np.bincount(member, minlength=groups)
    found = []
    for one in of_heads:
        if one.hits is not None:
            right = weights @ np.bincount(member, one.hits, minlength=groups)
            found.append(np.where(rows > 0, right / np.maximum(rows, 1), np.nan))
        else:
            assert one.metric is not None
            found.append(one.metric(weights[:, member]))
    return np.stack(found, axis=1)


def with_derived(values: Mapping[str, Floats], derived: Derived) -> dict[str, Floats]:
    """Return the (1 + DRAWS, T, H) values of every test, and of what is made of them."""
    found = dict(values)
    for name, make in derived.items():
        whole = np.stack(list(values.values()))
        flat = whole.reshape(len(values), -1).T
        made = [make(dict(zip(values, one.tolist(), strict=True))) for one in flat]
        found[name] = np.array(made).reshape(whole.shape[1:])
    return found


def summary(values: Floats) -> dict[str, float | int | None]:
    """Return what (1 + DRAWS, T) values of one head come to: mean, deviation and t-interval over trials, interval over rows."""
    whole, means = values[0], np.nanmean(values[1:], axis=1)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    found: dict[str, Any] = {
        "trials": len(whole), "mean": float(whole.mean()), "low": float(low), "high": float(high),
        "deviation": None, "trials_low": None, "trials_high": None,
    }  # fmt: skip
    if len(whole) > 1:
        deviation = float(whole.std(ddof=1))
        half = half_width(whole)
        assert half is not None  # there are several
        found |= {"deviation": deviation, "trials_low": found["mean"] - half, "trials_high": found["mean"] + half}
    return found


def half_width(values: npt.NDArray[np.float64]) -> float | None:
    """Return half the 95 % t-interval of the mean of (T,) values; None of a single one."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    return float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))


def difference(one: Floats, other: Floats) -> dict[str, float]:
    """Return the mean of one minus other over trials, (1 + DRAWS, T) each, with the interval of the paired bootstrap."""
    gaps = np.nanmean(one - other, axis=1)
    low, high = np.nanpercentile(gaps[1:], [2.5, 97.5])
    return {
        "difference": float(gaps[0]), "low": float(low), "high": float(high),
        "share_above_zero": float((gaps[1:] > 0).mean()),
    }  # fmt: skip
