"""What wrong answers look like to the backbone: the nearest training images of the surest mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np

from featurecache.reports import Table
from pipelines.sections import Page, Picture, Run, Section
from pipelines.sections._near import array_of, nearest_training_rows

MISTAKES, NEIGHBOURS = 12, 5


def section(page: Page) -> Section | None:
    """Show the mistakes that every run was surest of, each with its nearest training images."""
    tables: list[Table] = []
    values: dict[str, Any] = {}
    for run in page.runs:
        if not run.is_classification or not run.predictions or run.store is None:
            continue
        label, answer = run.answers
        wrong = np.flatnonzero(label != answer)
        if len(wrong):
            sure = wrong[np.argsort(-run.probabilities[wrong, answer[wrong]], kind="stable")][:MISTAKES]
            table, values[run.name] = _mistakes(run, sure)
            tables.append(table)
    if not values:
        return None
    return Section(title="Surest mistakes and their neighbours", tables=tables, values=values)


def _mistakes(run: Run, places: Any) -> tuple[Table, list[dict[str, Any]]]:
    assert run.store is not None
    found, cosines = nearest_training_rows(run, run.rows[places], NEIGHBOURS)
    table = run.store.table()
    ids, targets = np.asarray(table.sample_id), np.asarray(table.target)
    rows, values = [], []
    for place, near, similar in zip(places, found, cosines, strict=True):
        sample, label, answer = (str(run.predictions[name][place]) for name in ("sample_id", "label", "pred"))
        sure = float(run.probabilities[place].max())
        neighbours = [
            (str(ids[row]), run.class_names[int(targets[row])], float(c)) for row, c in zip(near, similar, strict=True)
        ]
        cells = [part for name, said, c in neighbours for part in (Picture(name), f"{said} {c:.2f}")]
        rows.append((Picture(sample), label, answer, f"{sure:.3f}", *cells))
        values.append(
            {"sample_id": sample, "label": label, "answer": answer, "probability": sure, "neighbours": neighbours}
        )
    columns = [
        "image",
        "label",
        "answer",
        "probability",
        *(c for k in range(found.shape[1]) for c in (f"near {k + 1}", "")),
    ]
    return Table(f"{run.name} (cosine of {array_of(run)})", columns, rows), values
