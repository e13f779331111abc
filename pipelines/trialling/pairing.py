"""How sure a protocol's numbers are: bootstrap over the tested groups, drawn alike for all heads, and over the trials."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.bootstrap import (
    DRAWS,
    UNBOUNDED,
    Floats,
    Interval,
    difference_interval,
    draw_group_weights,
    drawn_interval,
    proportion_interval,
    t_interval,
)
from featurecache.datasets import RowTable
from featurecache.features import Task
from featurecache.metrics import METRICS, Metric, primary

if TYPE_CHECKING:
    from pipelines.protocols import Part

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
    everything = _groups_of(outcomes)
    members = [np.searchsorted(everything, of_heads[0].keys) for of_heads in outcomes]
    values = np.empty((1 + DRAWS, len(outcomes), len(outcomes[0])))
    start = 0
    draws = draw_group_weights(len(everything), DRAWS, "protocol bootstrap", len(everything))
    for weights in itertools.chain([np.ones((1, len(everything)))], draws):
        for place, (of_heads, member) in enumerate(zip(outcomes, members, strict=True)):
            values[start : start + len(weights), place] = _weighted(of_heads, member, weights)
        start += len(weights)
    return values


@dataclass(frozen=True, slots=True)
class Sample:
    """What the draws were of."""

    units: int
    """Groups that were drawn from: rows, where they have no group."""
    proportion: bool = False
    """Whether a value is a share of independent rows, and no mean of several: then its interval needs no draws."""

    @classmethod
    def of(cls, outcomes: Sequence[Sequence[Outcome]]) -> Sample:
        """Return that of the outcomes, of one list of heads a trial."""
        units = len(_groups_of(outcomes))
        (first, *_), *more = outcomes
        return cls(units, first.hits is not None and not more and len(first.keys) == units)


def tested_rows(run: Path, table: RowTable) -> npt.NDArray[np.int64]:
    """Return the rows of a table that a run was measured on, in the order of its predictions."""
    import pyarrow.parquet as pq

    place = {str(name): row for row, name in enumerate(table.sample_id)}
    ids = pq.read_table(run / "predictions.parquet", columns=["sample_id"])["sample_id"].to_pylist()
    return np.array([place[name] for name in ids], np.int64)


def _groups_of(outcomes: Sequence[Sequence[Outcome]]) -> npt.NDArray[Any]:
    return np.unique(np.concatenate([of_heads[0].keys for of_heads in outcomes]))


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


def summary(values: Floats, limits: Interval, sample: Sample) -> dict[str, float | int | None]:
    """Return what (1 + DRAWS, T) values of one head come to: mean, deviation, intervals over trials and over rows.

    Args:
        values: of each trial; the first of the rows as they are, then of the draws.
        limits: least and greatest value that the metric can have.
        sample: what was drawn from.
    """
    whole, mean = values[0], float(values[0].mean())
    if sample.proportion:
        return _line(whole, limits, proportion_interval(mean, sample.units))
    return _line(whole, limits, drawn_interval(mean, np.nanmean(values[1:], axis=1), limits, units=sample.units))


def difference_summary(values: Floats, limits: Interval, sample: Sample) -> dict[str, float | int | None]:
    """Return the same of (1 + DRAWS, T) paired differences."""
    return _line(values[0], limits, _gap(values, limits, sample.units))


def _line(whole: Floats, limits: Interval, rows: Interval) -> dict[str, float | int | None]:
    found: dict[str, Any] = {
        "trials": len(whole), **_finite(mean=float(whole.mean()), low=rows[0], high=rows[1]),
        "deviation": None, "trials_low": None, "trials_high": None,
    }  # fmt: skip
    if len(whole) > 1:
        low, high = t_interval(whole, limits, tied=rows)
        found |= _finite(deviation=float(whole.std(ddof=1)), trials_low=low, trials_high=high)
    return found


def _gap(values: Floats, limits: Interval, units: int) -> Interval:
    return difference_interval(float(values[0].mean()), np.nanmean(values[1:], axis=1), limits, units=units)


def half_width(values: Floats) -> float | None:
    """Return half the 95 % t-interval of the mean of (T,) values, whatever their limits; None of a single one."""
    if len(values) < 2:
        return None
    low, high = t_interval(values, UNBOUNDED, tied=(0.0, 0.0))
    return (high - low) / 2


def difference(one: Floats, other: Floats, limits: Interval, sample: Sample) -> dict[str, float | None]:
    """Return the mean of one minus other over trials, (1 + DRAWS, T) each, with the interval of the paired bootstrap.

    `limits` are those of a difference; `sample` as in `summary`.
    """
    gaps = one - other
    low, high = _gap(gaps, limits, sample.units)
    above = float((np.nanmean(gaps[1:], axis=1) > 0).mean())
    return _finite(difference=float(gaps[0].mean()), low=low, high=high, share_above_zero=above)


def excludes_zero(line: Mapping[str, Any]) -> bool:
    """Return whether the interval of a difference leaves 0 out; where it includes 0 the data do not separate the two."""
    low, high = line["low"], line["high"]
    return low is not None and high is not None and not low <= 0 <= high


def _finite(**numbers: float) -> dict[str, float | None]:
    """Return the numbers, None for what JSON has no word for: an end that is not known."""
    return {name: number if np.isfinite(number) else None for name, number in numbers.items()}
