"""Options of a head beside each other: runs that are alike but for them, such as the starts of `lfa`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from featurecache.declarations import read_constant, read_options
from featurecache.features import comparable_data
from featurecache.registry import plain
from featurecache.reports import Table
from pipelines.sections import STROKES, Figure, Page, Run, Section, drawn, history_of, sheet, shown


def section(page: Page) -> Section | None:
    """Show one line a run and one curve a run, for all runs of a head on the same arrays whose options differ."""
    groups: dict[str, list[Run]] = {}
    for run in page.runs:
        data = json.dumps(comparable_data(run.record["features"]["data"]), sort_keys=True)
        groups.setdefault(json.dumps([run.record["head"], run.record["arrays"], data]), []).append(run)
    tables: list[Table] = []
    figures: list[Figure] = []
    values: dict[str, Any] = {}
    for runs in groups.values():
        options = [_options(run) for run in runs]
        differing = [name for name in options[0] if len({str(found[name]) for found in options}) > 1]
        if not differing:
            continue
        tables.append(_table(runs, options, differing))
        figures += _figures(runs, options, differing)
        values |= {
            run.name: {name: str(found[name]) for name in differing} for run, found in zip(runs, options, strict=True)
        }
    if not values:
        return None
    text = "Runs of one head on the same features, whose options differ. Epoch 0 is the start, before any step."
    return Section(title="Options beside each other", text=text, tables=tables, figures=figures, values=values)


def _options(run: Run) -> dict[str, Any]:
    """Return every option of the run's head, defaults too."""
    asked = json.loads((run.folder / read_constant("heads._checkpoint", "BUILD")).read_text(encoding="utf-8"))[
        "options"
    ]
    known = read_options(f"heads.{plain(run.record['head'])}", "build")
    return {option.name: asked.get(option.name, option.default) for option in known}


def _table(runs: Sequence[Run], options: Sequence[dict[str, Any]], differing: Sequence[str]) -> Table:
    metric = runs[0].record["selected_by"].partition(" ")[2]
    rows = []
    for run, found in zip(runs, options, strict=True):
        start = next((line.get(f"val_{metric}") for line in history_of(run) if line.get("epoch") == 0), None)
        measured = (shown(run.record["metrics"].get(split, {}).get(metric)) for split in ("val", "test"))
        told = (str(found[name]) for name in differing)
        rows.append((*told, run.name, "" if start is None else f"{start:.4f}", *measured, run.record["best_epoch"]))
    columns = (*differing, "run", f"val {metric} at the start", f"val {metric}", f"test {metric}", "epoch kept")
    return Table(str(runs[0].record["head"]), columns, rows)


def _figures(runs: Sequence[Run], options: Sequence[dict[str, Any]], differing: Sequence[str]) -> list[Figure]:
    """Return one drawing with a curve a run; none where nothing was trained by steps."""
    metric = runs[0].record["selected_by"].replace(" ", "_")
    canvas, axes = sheet(6, 3)
    for number, (run, found) in enumerate(zip(runs, options, strict=True)):
        points = [(line["epoch"], line[metric]) for line in history_of(run) if line.get(metric) is not None]
        label = f"{', '.join(f'{name}={found[name]}' for name in differing)} ({run.name})"
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), label=label, linestyle=STROKES[number % len(STROKES)])
    if not axes.lines:
        return []
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric)
    axes.legend(fontsize=7)
    return [drawn(canvas, f"{runs[0].record['head']}: {metric} over the epochs")]
