"""What is taken for what: the confusion matrix, recall by class, and the pairs that are confused most."""

from __future__ import annotations

from typing import Any

import numpy as np

from featurecache.bootstrap import proportion_interval
from featurecache.reports import Table, format_interval
from pipelines.sections import Figure, Page, Run, Section, heat_map

DRAWN = 30
"""Classes up to which the whole matrix is drawn."""
PAIRS = 15


def section(page: Page) -> Section | None:
    """Show one matrix a run that answers with classes."""
    runs = [run for run in page.runs if run.is_classification and run.predictions]
    if not runs:
        return None
    tables: list[Table] = []
    figures: list[Figure] = []
    values: dict[str, Any] = {}
    for run in runs:
        counts = _counts(run)
        values[run.name] = {"class_names": run.class_names, "counts": counts.tolist()}
        total = counts.sum(1)
        share = counts / np.where(total, total, 1)[:, None]
        if len(counts) <= DRAWN:
            figures.append(
                heat_map(share, run.class_names, run.class_names, f"{run.name}: label (row) answered as (column)")
            )
        tables += _pairs(run, counts)
        recalls = [
            (name, int(n), f"{share[c, c]:.4f}" if n else "", _interval(float(share[c, c]), int(n)))
            for c, (name, n) in enumerate(zip(run.class_names, total, strict=True))
        ]
        tables.append(
            Table(f"{run.name}: recall", ("class", "rows", "recall", "95 %, were rows independent"), recalls[:200])
        )
    return Section(title="Confusions", tables=tables, figures=figures, values=values)


def _interval(recall: float, rows: int) -> str:
    return format_interval(*proportion_interval(recall, rows)) if rows else ""


def _counts(run: Run) -> Any:
    """(C, C) rows by label and answer."""
    label, answer = run.answers
    counts = np.zeros((len(run.class_names),) * 2, np.int64)
    np.add.at(counts, (label, answer), 1)
    return counts


def _pairs(run: Run, counts: Any) -> list[Table]:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    places = [tuple(map(int, np.unravel_index(place, wrong.shape))) for place in order]
    rows = [(run.class_names[a], run.class_names[b], int(wrong[a, b])) for a, b in places if wrong[a, b]]
    return [Table(f"{run.name}: confused most", ("label", "answer", "rows"), rows)] if rows else []
