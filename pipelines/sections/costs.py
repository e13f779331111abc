"""What training the backbone brought and cost: quality over trained parameters and multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from featurecache.reports import Table
from pipelines.sections import Figure, Page, Run, Section, drawn, sheet, shown

MARKS = "osD^vP*X<>p"
"""Of methods, in turn: eleven beside ten colours, so that a pair comes again after 110."""


def section(page: Page) -> Section | None:
    """Draw every run that was trained on images, and every mean of a comparison, by method; None where there are none."""
    lines = [line for run in page.runs if (line := _line(run)) is not None]
    lines += [_mean(line, record) for record in page.comparisons for line in record["lines"]]
    if not lines:
        return None
    text = (
        "Trained parameters are those of the backbone. Multiply-adds are of one image forward, with the method in it; bytes "
        "are what a step keeps for the gradient, from a pass of the trained model. The larger the mark, the more is kept. "
        "Intervals are of 95 %, of a run over the rows of the split, of a comparison over its seeds where there are several."
    )
    columns = ("run", "method", "data", "split", "quality", "trained parameters", "GMAC", "kept MiB", "ms a step")
    figures = [
        figure
        for metric, data in dict.fromkeys((line["metric"], line["data"]) for line in lines)
        for figure in _figures(
            f"{metric} of {data}", [line for line in lines if (line["metric"], line["data"]) == (metric, data)]
        )
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


def _mean(line: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a comparison says of a method on a data set, over its seeds."""
    seeds, kind = len(record["asked"]["seeds"]), "seeds_" if len(record["asked"]["seeds"]) > 1 else ""
    low, high = line.get(f"{kind}low"), line.get(f"{kind}high")
    if "seeds_low" not in line and line["half_width"] is not None:  # a record of an older version
        low, high = line["mean"] - line["half_width"], line["mean"] + line["half_width"]
    measured = {"value": line["mean"], "low": low, "high": high}
    return {
        "run": f"mean of {seeds}", "method": line["method"], "split": "test", "metric": record["metrics"][line["data"]],
        "measured": measured, **{name: line[name] for name in ("data", "trained", "multiply_adds", "saved_bytes", "step_seconds")},
    }  # fmt: skip


def _row(line: dict[str, Any]) -> tuple[str, ...]:
    step = "" if line["step_seconds"] is None else f"{1000 * line['step_seconds']:.0f}"
    return (
        line["run"], line["method"], line["data"], f"{line['split']} {line['metric']}", shown(line["measured"]), str(line["trained"]),
        f"{line['multiply_adds'] / 1e9:.3f}", f"{line['saved_bytes'] / 2**20:.1f}", step,
    )  # fmt: skip


def _figures(quality: str, lines: list[dict[str, Any]]) -> list[Figure]:
    """Return the drawings over parameters and over multiply-adds, one point a run."""
    return [
        _drawing(quality, lines, "trained", "trained parameters of the backbone", 1, log=True),
        _drawing(quality, lines, "multiply_adds", "GMAC of an image", 1e9, log=False),
    ]


def _drawing(quality: str, lines: list[dict[str, Any]], key: str, label: str, unit: float, *, log: bool) -> Figure:
    canvas, axes = sheet(6, 4)
    most = max(line["saved_bytes"] for line in lines) or 1
    for number, method in enumerate(dict.fromkeys(line["method"] for line in lines)):
        own = [line for line in lines if line["method"] == method]
        known = [line for line in own if line["measured"]["low"] is not None]
        axes.vlines(
            [line[key] / unit for line in known], [line["measured"]["low"] for line in known],
            [line["measured"]["high"] for line in known], color="0.8", linewidth=1, zorder=0,
        )  # fmt: skip
        axes.scatter(
            [line[key] / unit for line in own], [line["measured"]["value"] for line in own], label=method, alpha=0.8,
            s=[20 + 180 * line["saved_bytes"] / most for line in own], marker=MARKS[number % len(MARKS)],
        )  # fmt: skip
    if log:
        _with_zero(axes, [x for x in _of(lines, key) if x] or [1.0])
    axes.set_xlabel(label)
    axes.set_ylabel(quality)
    axes.legend(fontsize=7, markerscale=0.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn(canvas, f"{quality} over {label}")


def _with_zero(axes: Any, values: list[float]) -> None:
    """Make the axis logarithmic over positive values, with room for 0, which methods that train nothing have."""
    least, most = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    axes.set_xscale("symlog", linthresh=10**least)
    axes.set_xlim(-0.3 * 10**least, 10 ** (most + 0.2))
    axes.set_xticks([0, *(10**power for power in range(least, most + 1))])


def _of(lines: list[dict[str, Any]], key: str) -> list[float]:
    return [float(line[key]) for line in lines]
