"""The answer: every run with its metrics and their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurecache.reports import Table
from pipelines.sections import Page, Run, Section, shown
from pipelines.training.closing import describe_split, describe_training
from pipelines.training.convergence import describe_improving


def section(page: Page) -> Section | None:
    """Show one line a run and split; None of a page without runs."""
    if not page.runs:
        return None
    names = list(dict.fromkeys(name for run in page.runs for name in _metrics(run)))
    rows = [
        (
            run.name,
            run.record["head"],
            _arrays(run),
            describe_split(split, run.record),
            *(shown(found.get(name)) for name in names),
        )
        for run in page.runs
        for split, found in run.record["metrics"].items()
    ]
    costs = [
        (run.name, _count(run.record.get("backbone_parameters")), _count(run.record["parameters"]),
         _count(run.record["trained_parameters"]), describe_training(run.record), f"{run.record['seconds']:.1f}",
         run.record["features"]["backbone"]["name"], run.record["features"]["data"]["name"])
        for run in page.runs
    ]  # fmt: skip
    columns = ("run", "in the backbone", "in the head", "trainable", "how fitted", "seconds", "backbone", "data")
    return Section(
        title="Metrics",
        text="Values with 95 % intervals, by bootstrap over groups where the data has groups. Validation chose; test was only measured.",
        tables=[
            Table("", ("run", "head", "reads", "split", *names), rows, _improving(page.runs)),
            Table("parameters", columns, costs),
        ],
        values=[_values(run) for run in page.runs],
    )


def _improving(runs: Sequence[Run]) -> list[str]:
    """Return one line for every run whose head was still improving when training ended."""
    still = [run for run in runs if run.record.get("still_improving")]
    return [f"{run.name}: {describe_improving(run.record['head'], 1, 1)}" for run in still]


def _count(parameters: int | None) -> str:
    """Return a number of parameters; of a run on cached features that of the backbone is not known."""
    return "frozen" if parameters is None else f"{parameters:,}"


def _metrics(run: Run) -> list[str]:
    return [
        name for found in run.record["metrics"].values() for name, value in found.items() if isinstance(value, dict)
    ]


def _arrays(run: Run) -> str:
    arrays = [name.removeprefix("layers/") for name in run.record["arrays"]]
    return ", ".join(arrays) if len(arrays) <= 2 else f"{arrays[0]} ... {arrays[-1]} ({len(arrays)})"


def _values(run: Run) -> dict[str, Any]:
    """Return the record's numbers, and label and answer of every predicted row, so that they can be counted again."""
    found: dict[str, Any] = {"run": run.name, "metrics": run.record["metrics"], "class_names": run.class_names}
    if run.is_classification and run.predictions:
        label, answer = run.answers
        found["predicted"] = {"label": label.tolist(), "answer": answer.tolist()}
    return found
