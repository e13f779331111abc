"""Methods beside each other on the same data: what each came to over seeds, against a baseline, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.datasets import RowTable
from featurecache.metrics import difference_limits, limits_of, primary
from pipelines.trialling.pairing import (
    Floats,
    Outcome,
    Sample,
    difference_summary,
    drawn,
    half_width,
    summary,
    tested_rows,
)

ENDS = {"low": "low", "high": "high", "trials_low": "seeds_low", "trials_high": "seeds_high"}
"""End of an interval in a summary of trials, which are seeds here -> what it is called in a line."""
Runs = Sequence[tuple[Path, Mapping[str, Any]]]
"""Folder and record of one run a seed, in the same order for every method."""


def lines_of(
    runs: Mapping[tuple[str, str], Runs], tables: Mapping[str, RowTable], baseline: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return a line for each method on each data set, the best first, and the metric of each data set.

    The baseline's difference to itself has no interval.

    Args:
        runs: by data set and method.
        tables: rows of each data set, for the groups of those that were measured.
        baseline: method that the others are compared with.
    """
    lines: list[dict[str, Any]] = []
    metrics = {title: primary(found[0][1]["task"]) for (title, _), found in runs.items()}
    for title, metric in metrics.items():
        methods = [method for data, method in runs if data == title]
        values, sample = _values([runs[title, method] for method in methods], tables[title], metric)
        compared = values[:, :, [methods.index(baseline)]]
        lines += sorted(
            (
                _line(title, method, runs[title, method], values[:, :, place], (values - compared)[:, :, place], sample)
                | ({f"difference_{end}": None for end in ENDS.values()} if method == baseline else {})
                for place, method in enumerate(methods)
            ),
            key=lambda line: -line["mean"],
        )
    return lines, metrics


def _values(of_methods: Sequence[Runs], table: RowTable, metric: str) -> tuple[Floats, Sample]:
    """Return (1 + draws, seeds, methods) values, the first as the records say, and what was drawn from."""
    rows = tested_rows(of_methods[0][0][0], table)
    outcomes = [
        [Outcome.read(folder, record["task"], table, rows) for folder, record in of_seed]
        for of_seed in zip(*of_methods, strict=True)
    ]
    values = drawn(outcomes)
    values[0] = [[_value(record, metric) for _, record in of_seed] for of_seed in zip(*of_methods, strict=True)]
    return values, Sample.of(outcomes)


def _value(record: Mapping[str, Any], metric: str) -> float:
    split = "test" if "test" in record["metrics"] else "val"
    return float(record["metrics"][split][metric]["value"])


def _line(title: str, method: str, runs: Runs, values: Floats, gaps: Floats, sample: Sample) -> dict[str, Any]:
    """Return what a method came to on a data set: mean and intervals over seeds and rows, paired difference, costs.

    `values` and `gaps` are (1 + draws, seeds).
    """
    records = [record for _, record in runs]
    costs, metric = records[0]["costs"], primary(records[0]["task"])
    reached, gained = (
        summary(values, limits_of(metric), sample),
        difference_summary(gaps, difference_limits(metric), sample),
    )
    return {
        "data": title, "method": method, "mean": reached["mean"], "half_width": half_width(values[0]),
        "difference": gained["mean"], "difference_half_width": half_width(gaps[0]),
        **{name: reached[end] for end, name in ENDS.items()},
        **{f"difference_{name}": gained[end] for end, name in ENDS.items()},
        "values": json.dumps(values[0].tolist()), "trained": records[0]["trained_backbone_parameters"],
        "parameters": records[0]["backbone_parameters"] + records[0]["parameters"],
        "trainable": records[0]["trained_parameters"], "saved_bytes": costs["saved_bytes"], "multiply_adds": costs["multiply_adds"],
        "step_seconds": float(np.median([one["step_seconds"] or 0.0 for one in records])),
    }  # fmt: skip
