"""What training the backbone brought and cost: quality over trained parameters and multiply-adds."""

from __future__ import annotations

import math
from typing import Any

from featurecache.reports import Table
from pipelines.sections import Figure, Page, Run, Section, drawn, sheet, shown

MARKS = "osD^vP*X<>"
"""Of methods, in turn: where colours come again, shapes do not."""


def section(page: Page) -> Section | None:
    """Draw every run that was trained on images, by method; None where there are none."""
    lines = [line for run in page.runs if (line := _line(run)) is not None]
    if not lines:
        return None
    text = (
        "Trained parameters are those of the backbone. Multiply-adds are of one image forward, with the method in it; bytes "
        "are what a step keeps for the gradient, from a pass of the trained model. The larger the mark, the more is kept."
    )
    columns = ("run", "method", "split", "quality", "trained parameters", "GMAC", "kept MiB", "ms a step")
    figures = [
        figure
        for metric in dict.fromkeys(line["metric"] for line in lines)
        for figure in _figures(metric, [line for line in lines if line["metric"] == metric])
    ]
    return Section(
        title="Quality and cost", text=text, figures=figures, values=lines,
        tables=[Table("", columns, [_row(line) for line in lines])],
    )  # fmt: skip


def _line(run: Run) -> dict[str, Any] | None:
    """Return what the record of a run says; None of a cached run, which has no backbone to train."""
    record = run.record
    if "costs" not in record:
        return None
    split = "test" if "test" in record["metrics"] else "val"
    metric = record["selected_by"].partition(" ")[2]
    measured = record["metrics"].get(split, {}).get(metric)
    if not measured or measured["value"] is None:
        return None
    return {
        "run": run.name, "method": record["peft"]["method"], "split": split, "metric": metric, "measured": measured,
        "data": record["features"]["data"]["name"], "trained": record["trained_backbone_parameters"],
        "multiply_adds": record["costs"]["multiply_adds"], "saved_bytes": record["costs"]["saved_bytes"],
        "step_seconds": record["step_seconds"],
    }  # fmt: skip


def _row(line: dict[str, Any]) -> tuple[str, ...]:
    step = "" if line["step_seconds"] is None else f"{1000 * line['step_seconds']:.0f}"
    return (
        line["run"], line["method"], f"{line['split']} {line['metric']}", shown(line["measured"]), str(line["trained"]),
        f"{line['multiply_adds'] / 1e9:.3f}", f"{line['saved_bytes'] / 2**20:.1f}", step,
    )  # fmt: skip


def _figures(metric: str, lines: list[dict[str, Any]]) -> list[Figure]:
    """Return the drawings over parameters and over multiply-adds, one point a run."""
    return [
        _drawing(metric, lines, "trained", "trained parameters of the backbone", 1, log=True),
        _drawing(metric, lines, "multiply_adds", "GMAC of an image", 1e9, log=False),
    ]


def _drawing(metric: str, lines: list[dict[str, Any]], key: str, label: str, unit: float, *, log: bool) -> Figure:
    canvas, axes = sheet(6, 4)
    most = max(line["saved_bytes"] for line in lines) or 1
    for number, method in enumerate(dict.fromkeys(line["method"] for line in lines)):
        own = [line for line in lines if line["method"] == method]
        axes.scatter(
            [line[key] / unit for line in own], [line["measured"]["value"] for line in own], label=method, alpha=0.8,
            s=[20 + 180 * line["saved_bytes"] / most for line in own], marker=MARKS[number % len(MARKS)],
        )  # fmt: skip
    if log:
        axes.set_xscale(
            "symlog", linthresh=10 ** math.floor(math.log10(min([x for x in _of(lines, key) if x], default=1)))
        )
    axes.set_xlim(left=0) if log else None
    axes.set_xlabel(label)
    axes.set_ylabel(metric)
    axes.legend(fontsize=7, markerscale=0.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn(canvas, f"{metric} over {label}")


def _of(lines: list[dict[str, Any]], key: str) -> list[float]:
    return [float(line[key]) for line in lines]
