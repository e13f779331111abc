"""How training went: loss and validation metric over the epochs."""

from __future__ import annotations

from typing import Any

from pipelines.sections import STROKES, Figure, Page, Section, drawn, history_of, sheet


def section(page: Page) -> Section | None:
    """Draw one line a run that was trained by steps; the epoch whose values were kept is marked."""
    lines = {run.name: line for run in page.runs if len(line := history_of(run)) > 1}
    best = {run.name: run.record["best_epoch"] for run in page.runs}
    if not lines:
        return None
    names = dict.fromkeys(name for line in lines.values() for entry in line for name in entry)
    figures = [_figure(name, lines, best) for name in names if name not in ("epoch", "lr", "weight_decay")]
    text = "The circle is the epoch whose values were kept; epoch 0 is the start."
    return Section(title="Training", text=text, figures=figures, values=lines)


def _figure(name: str, lines: dict[str, list[dict[str, Any]]], best: dict[str, int]) -> Figure:
    canvas, axes = sheet(6, 3)
    for number, (run, line) in enumerate(lines.items()):
        points = [(entry["epoch"], entry[name]) for entry in line if entry.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=run, linestyle=STROKES[number % len(STROKES)])
            kept = [point for point in points if point[0] == best[run]]
            axes.plot(*zip(*kept, strict=True), "o", color=axes.lines[-1].get_color()) if kept else None
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    axes.legend(fontsize=7) if len(lines) > 1 else None
    return drawn(canvas, name)
