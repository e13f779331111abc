"""Labels that are suspicious: the head gives them little probability, and the nearest training images have another."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.reports import Table
from pipelines.sections import Page, Picture, Run, Section
from pipelines.sections._near import nearest_training_rows

CANDIDATES, SHOWN, NEIGHBOURS = 200, 20, 10


def section(page: Page) -> Section | None:
    """Show, for every run, the predicted rows whose label both the head and the neighbours contradict most."""
    tables: list[Table] = []
    values: dict[str, Any] = {}
    for run in page.runs:
        if run.is_classification and run.predictions and run.store is not None:
            rows = _suspicious(run)
            values[run.name] = rows
            shown = [
                (
                    Picture(row["sample_id"]),
                    row["label"],
                    f"{row['probability']:.4f}",
                    row["answer"],
                    f"{row['agree']} of {row['of']}",
                )
                for row in rows
            ]
            columns = ("image", "label", "its probability", "answer", "neighbours with this label")
            tables.append(Table(run.name, columns, shown))
    if not values:
        return None
    text = (
        "These rows took no part in training. A wrong label is one reason to be here; a rare kind of image is another."
    )
    return Section(title="Most suspicious labels", text=text, tables=tables, values=values)


def _suspicious(run: Run) -> list[dict[str, Any]]:
    label, answer = run.answers
    given = run.probabilities[np.arange(len(label)), label]
    wrong = np.flatnonzero(label != answer)
    places = wrong[np.argsort(given[wrong], kind="stable")][:CANDIDATES]
    if not len(places):
        return []
    assert run.store is not None
    found, _ = nearest_training_rows(run, run.rows[places], NEIGHBOURS)
    targets = np.asarray(run.store.table().target)
    agree: npt.NDArray[np.int64] = (targets[found] == label[places][:, None]).sum(1)
    order = np.lexsort((given[places], agree))[:SHOWN]
    return [
        {
            "sample_id": str(run.predictions["sample_id"][places[i]]), "label": run.class_names[label[places[i]]],
            "probability": float(given[places[i]]), "answer": run.class_names[answer[places[i]]], "agree": int(agree[i]),
            "of": int(found.shape[1]),
        }
        for i in order
    ]  # fmt: skip
