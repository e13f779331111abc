"""What a sweep tried, and where every cell stood on validation."""

from __future__ import annotations

from typing import Any

from featurecache.reports import Table
from pipelines.sections import Figure, Page, Run, Section, drawn, sheet, shown
from pipelines.training.selection import columns_of

SHOWN = 40


def section(page: Page) -> Section | None:
    """Show the best cells of every sweep, and the validation metric along each axis of numbers."""
    swept = [run for run in page.runs if "sweep" in run.record]
    if not swept:
        return None
    tables, figures = [], []
    for run in swept:
        lines, metric = run.record["sweep"]["cells"], run.record["selected_by"].replace(" ", "_")
        columns = [name for name in columns_of(lines) if _told(name, lines)]
        alive = sorted((line for line in lines if line[metric] is not None), key=lambda line: -line[metric])
        notes = [f"{len(lines)} cells; the others are in {run.name}/sweep.csv"] if len(lines) > SHOWN else []
        notes += _tested(run)
        rows = [tuple(_text(line.get(name)) for name in columns) for line in alive[:SHOWN]]
        tables.append(Table(run.name, columns, rows, notes))
        figures += [_figure(run, axis, alive, metric) for axis in _axes(alive)]
    return Section(
        title="Sweeps", tables=tables, figures=figures, values={run.name: run.record["sweep"] for run in swept}
    )


def _told(column: str, lines: list[dict[str, Any]]) -> bool:
    """Return whether a column says something here that no other one says."""
    known = column in ("parameters", "trained_parameters", "arrays")
    return not known and any(line.get(column) is not None for line in lines)


def _tested(run: Run) -> list[str]:
    """Return what test says of the chosen cell, and how to hear it of the others."""
    metric = run.record["selected_by"].partition(" ")[2]
    found = shown(run.record["metrics"].get("test", {}).get(metric))
    return (
        [f"test {metric} of the chosen cell: {found}. Others have one when they are runs of their own."]
        if found
        else []
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _axes(lines: list[dict[str, Any]]) -> list[str]:
    """Return the settings with several numbers."""
    return [
        name
        for name in ("lr", "weight_decay", "layers")
        if lines
        and len({str(line.get(name)) for line in lines}) > 1
        and all(_number(line.get(name)) is not None for line in lines)
    ]


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _figure(run: Run, axis: str, lines: list[dict[str, Any]], metric: str) -> Figure:
    canvas, axes = sheet(6, 3)
    for chosen, mark in ((False, "o"), (True, "*")):
        points = [(_number(line[axis]), line[metric]) for line in lines if line["chosen"] is chosen]
        if points:
            axes.plot(*zip(*points, strict=True), mark, markersize=10 if chosen else 4, alpha=1 if chosen else 0.6)
    values = [value for line in lines if (value := _number(line[axis])) is not None]
    if min(values) > 0 and max(values) / min(values) >= 10:
        axes.set_xscale("log")
    axes.set_xlabel(axis)
    axes.set_ylabel(metric)
    return drawn(canvas, f"{run.name}: {metric} along {axis}; the star was chosen")
