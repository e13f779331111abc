"""What students learned from their teachers: results of sweeps with paired differences, whose dimensions count, kernel distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from featurecache.reports import Table
from pipelines.sections import STROKES, Figure, Page, Run, Section, drawn, sheet
from pipelines.students.comparing import tables

SHOWN = 5
"""Dimensions of a teacher that are named."""


def section(page: Page) -> Section | None:
    """Show one line a run and teacher, and draw the scales of its dimensions from the largest to the smallest."""
    taught = [run for run in page.runs if run.record.get("teachers")]
    if not taught:
        return None
    swept = [Table(f"{run.name}: {one.title}", one.columns, one.rows, one.notes)
             for run in taught if "students" in run.record for one in tables(run.record)]  # fmt: skip
    rows = [_line(run, teacher) for run in taught for teacher in run.record["teachers"]]
    columns = (
        "run", "objective", "prec", "teacher", "width", "mean scale", "deviation", f"dimensions of the {SHOWN} largest scales",
        "kernel distance before", "after",
    )  # fmt: skip
    figures = [figure for run in taught for figure in _scales(run)]
    text = (
        "A scale is what a dimension of a teacher is multiplied by before kernels are compared (aft: between 0 and 1, 0.5 at "
        "the start). The kernel distance is that of aft with equal scales, over rows of validation, whatever was minimised."
    )
    values = {
        run.name: {name: run.record.get(name) for name in ("objective", "teachers", "students")} for run in taught
    }
    return Section(
        title="Students and teachers", text=text, tables=[*swept, Table("teachers", columns, rows)], figures=figures,
        values=values,
    )  # fmt: skip


def _line(run: Run, teacher: dict[str, Any]) -> tuple[str, ...]:
    objective, scales = run.record["objective"], np.array(teacher.get("scales", ()))
    largest = " ".join(map(str, np.argsort(-scales)[:SHOWN].tolist()))
    apart = teacher.get("kernel_distance", {})
    return (
        run.name, objective["name"], _number(objective["prec"]), teacher["backbone"], str(teacher["width"]),
        _number(teacher.get("scales_mean")), _number(teacher.get("scales_std")), largest,
        *(_number(apart.get(when)) for when in ("before", "after")),
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _scales(run: Run) -> list[Figure]:
    """Draw the sorted scales of every teacher of a run that learnt some."""
    known = [teacher for teacher in run.record["teachers"] if "scales" in teacher]
    if not known:
        return []
    canvas, axes = sheet(6, 3)
    for number, teacher in enumerate(known):
        values = sorted(teacher["scales"], reverse=True)
        places = np.linspace(0, 1, len(values))
        axes.plot(places, values, label=teacher["backbone"], linestyle=STROKES[number % len(STROKES)])
    axes.set_xlabel("share of the dimensions")
    axes.set_ylabel("scale")
    axes.legend(fontsize=7)
    return [drawn(canvas, f"{run.name}: scales of the teachers' dimensions, the largest first")]
