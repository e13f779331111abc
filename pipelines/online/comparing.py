"""Methods beside each other on the same data: what each came to over seeds, against a baseline, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featurecache.metrics import primary
from pipelines.trialling.pairing import half_width


def lines_of(
    records: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], baseline: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return a line for each method on each data set, the best first, and the metric of each data set.

    `records` holds, by data set and method, the records of one run for each seed, in the same order everywhere.
    """
    metrics = {title: primary(found[0]["task"]) for (title, _), found in records.items()}
    values = {key: np.array([_value(one, metrics[key[0]]) for one in found]) for key, found in records.items()}
    lines = [
        _line(title, method, found, values[title, method], values[title, baseline]) for (title, method), found in records.items()
    ]  # fmt: skip
    titles = list(metrics)
    return sorted(lines, key=lambda line: (titles.index(line["data"]), -line["mean"])), metrics


def _value(record: Mapping[str, Any], metric: str) -> float:
    split = "test" if "test" in record["metrics"] else "val"
    return float(record["metrics"][split][metric]["value"])


def _line(title: str, method: str, records: Sequence[Mapping[str, Any]], values: Any, baseline: Any) -> dict[str, Any]:
    """Return what a method came to on a data set: mean and t-interval over seeds, difference paired by seed, costs."""
    costs = records[0]["costs"]
    return {
        "data": title, "method": method, "mean": float(values.mean()), "half_width": half_width(values),
        "difference": float((values - baseline).mean()), "difference_half_width": half_width(values - baseline),
        "values": json.dumps(values.tolist()), "trained": records[0]["trained_backbone_parameters"],
        "saved_bytes": costs["saved_bytes"], "multiply_adds": costs["multiply_adds"],
        "step_seconds": float(np.median([one["step_seconds"] or 0.0 for one in records])),
    }  # fmt: skip
