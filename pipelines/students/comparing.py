"""What the cells of a sweep came to: the setting that validation chose for each objective, its test rows, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurecache.datasets import ImageDataset
from featurecache.metrics import difference_limits, limits_of, primary
from featurecache.reports import Table, format_interval
from pipelines.trialling.pairing import (
    Outcome,
    Sample,
    difference_summary,
    drawn,
    excludes_zero,
    summary,
    tested_rows,
)

if TYPE_CHECKING:
    from pipelines.students.cells import StudentCell

Line = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A cell with its record; None where its loss ceased to be a number."""

    cell: StudentCell
    record: Mapping[str, Any] | None

    def value(self, split: str, metric: str) -> float:
        """Return a metric, NaN where it was not measured."""
        found = (self.record or {"metrics": {}})["metrics"].get(split, {}).get(metric)
        return float("nan") if found is None or found["value"] is None else float(found["value"])


def chosen(done: Sequence[Done], metric: str) -> dict[tuple[str, str], list[Done]]:
    """Return (objective, teachers) -> the cells of its best setting on validation, one a seed; of equals the first.

    A setting of which a seed diverged is not chosen; a group all of whose settings did is left out.
    """
    groups: dict[tuple[str, str], dict[Any, list[Done]]] = {}
    for one in done:
        groups.setdefault(one.cell.group, {}).setdefault(one.cell.setting, []).append(one)
    found = {}
    for group, settings in groups.items():
        alive = [cells for cells in settings.values() if all(cell.record is not None for cell in cells)]
        if alive:
            found[group] = max(alive, key=lambda cells: standing(cells, metric))
    return found


def standing(cells: Sequence[Done], metric: str) -> float:
    """Return the mean of a metric over the seeds of a setting, on validation; minus infinity where it is not defined."""
    values = [cell.value("val", metric) for cell in cells]
    known = [value for value in values if not np.isnan(value)]
    return sum(known) / len(known) if known else float("-inf")


def compared(picked: Mapping[tuple[str, str], Sequence[Done]], dataset: ImageDataset) -> dict[str, list[Line]]:
    """Return "results", a line an objective and its teachers, and "differences" to the first of them, paired by row and seed."""
    metric, groups = primary(dataset.task), list(picked)
    every = [one for group in groups for one in picked[group]]
    if not all("test" in (one.record or {"metrics": {}})["metrics"] for one in every):
        return {"results": [_defined(_line(group, picked[group], metric)) for group in groups], "differences": []}
    rows = tested_rows(every[0].cell.config.out, dataset.table)
    seeds = [[cell.cell.config.seed for cell in picked[group]] for group in groups]
    outcomes = [
        [Outcome.read(picked[group][place].cell.config.out, dataset.task, dataset.table, rows) for group in groups]
        for place in range(min(map(len, seeds)))
    ]
    values, sample = drawn(outcomes), Sample.of(outcomes)
    results = [
        {**_line(group, picked[group], metric), **summary(values[:, :, place], limits_of(metric), sample)}
        for place, group in enumerate(groups)
    ]
    first = {"objective": groups[0][0], "teachers": groups[0][1]}
    differences = [
        {
            "objective": group[0], "teachers": group[1], **{f"against_{name}": value for name, value in first.items()},
            **difference_summary(values[:, :, place] - values[:, :, 0], difference_limits(metric), sample),
        }
        for place, group in enumerate(groups) if place
    ]  # fmt: skip
    return {"results": [_defined(line) for line in results], "differences": [_defined(line) for line in differences]}


def _defined(line: Line) -> Line:
    """Return a line in which a number that is none, as a metric of too few rows may be, is None."""
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in line.items()}


def _line(group: tuple[str, str], cells: Sequence[Done], metric: str) -> Line:
    found: Line = {"objective": group[0], "teachers": group[1], **dict(cells[0].cell.setting), "seeds": len(cells)}
    value = standing(cells, metric)
    found[f"val_{metric}"] = value if np.isfinite(value) else None
    distances = [
        [
            one["kernel_distance"]["after"]
            for one in (cell.record or {}).get("teachers", ())
            if one.get("kernel_distance")
        ]
        for cell in cells
    ]
    if all(distances):
        found["kernel_distance"] = " ".join(f"{value:.3f}" for value in np.mean(distances, axis=0))
    return found


def cell_lines(done: Sequence[Done], picked: Mapping[tuple[str, str], Sequence[Done]], metric: str) -> list[Line]:
    """Return one line a cell: what the sweep set, where it stood on validation, and whether it was chosen."""
    taken = [one for cells in picked.values() for one in cells]
    lines = []
    for one in done:
        record = one.record or {}
        value = one.value("val", metric)
        lines.append({
            **one.cell.named, f"val_{metric}": None if np.isnan(value) else value, "best_epoch": record.get("best_epoch"),
            "diverged_in_epoch": None if one.record else "yes", "parameters": record.get("parameters"),
            "trained_parameters": record.get("trained_parameters"), "step_seconds": record.get("step_seconds"),
            "seconds": record.get("seconds"), "arrays": "embedding", "chosen": one in taken,
        })  # fmt: skip
    return lines


def tables(record: Mapping[str, Any]) -> list[Table]:
    """Return the results and the differences of a finished sweep."""
    metric, lines = record["selected_by"].partition(" ")[2], record["students"]["results"]
    left_out = ("trials", "mean", "low", "high", "deviation", "trials_low", "trials_high")
    columns = list(dict.fromkeys(name for line in lines for name in line if name not in left_out))
    rows = [(*(_plain(line.get(name)) for name in columns), *_shown(line, ".4f")) for line in lines]
    heads = (f"test {metric}", "95 % over rows", "95 % over seeds")
    notes = [
        "chosen on validation, each objective with its teachers for itself; kernel_distance: to each teacher, afterwards"
    ]
    found = [Table("students", (*columns, *heads), rows, notes)]
    gaps = record["students"]["differences"]
    if gaps:
        against = " ".join(filter(None, (gaps[0]["against_objective"], gaps[0]["against_teachers"])))
        rows = [
            (line["objective"], line["teachers"], *_shown(line, "+.4f"), "" if excludes_zero(line) else "includes 0")
            for line in gaps
        ]
        title = f"test {metric} above {against}, paired by row and by seed"
        found.append(Table(title, ("objective", "teachers", "difference", *heads[1:], ""), rows))
    return found


def _shown(line: Line, form: str) -> tuple[str, str, str]:
    if line.get("mean") is None:
        return "", "", ""
    spans = [
        format_interval(line.get(low), line.get(high), form)
        for low, high in (("low", "high"), ("trials_low", "trials_high"))
    ]
    return format(line["mean"], form), spans[0], spans[1]


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
