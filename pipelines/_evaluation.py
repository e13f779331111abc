"""What a trained head says of rows: metrics with intervals, and one line a sample for `predictions.parquet`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor, nn

from featurecache.datasets import RowTable
from featurecache.features import Task
from featurecache.files import write_whole
from featurecache.metrics import Measured, measure
from featurecache.sources.cached import CachedSource
from featurecache.threads import suited_threads
from pipelines.training.outputs import outputs_of

ROW_GROUP = 16384
"""Rows of predictions that are put into words at a time."""


def evaluate(head: nn.Module, source: CachedSource, task: Task, device: str) -> tuple[dict[str, Any], Tensor]:
    """Return (metric name -> value and interval, (N, C) logits) of a head over the rows of a store."""
    with suited_threads(len(source)):
        logits, targets = outputs_of(head, source, device)
        return measured(logits, targets, np.asarray(source.store.table().group)[source.rows], task), logits


def measured(logits: Tensor, targets: Tensor, group: npt.NDArray[Any], task: Task) -> dict[str, Any]:
    """Return metric name -> value and interval of (N, C) logits; `group` (N,) says what must not be separated, "" is alone."""
    groups = group.tolist() if (group != "").any() else None
    found = measure(logits.numpy(), targets.numpy(), task, groups=groups)
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Measured):
        numbers = {"value": value.value, "low": value.low, "high": value.high}
        return {name: number if np.isfinite(number) else None for name, number in numbers.items()}
    return value


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """Return (N, C) probabilities of logits; values of a regression stay as they are."""
    if task == "classification":
        return logits.softmax(-1)
    return logits.sigmoid() if task == "multilabel" else logits


def prediction_table(
    sample_ids: Sequence[str], targets: npt.NDArray[Any], logits: Tensor, class_names: Sequence[str], task: Task
) -> pa.Table:
    """Return the columns sample_id, label, pred and prob_<class> (value_<name> for regression)."""
    values = probabilities(logits, task)
    kind = "value" if task == "regression" else "prob"
    columns: dict[str, Any] = {
        "sample_id": [str(name) for name in sample_ids],
        "label": [said(target, class_names, task) for target in torch.as_tensor(targets)],
        "pred": [said(answer, class_names, task) for answer in answers(values, task)],
    }
    columns |= {f"{kind}_{name}": values[:, i].numpy() for i, name in enumerate(class_names)}
    return pa.table(columns)


def answers(values: Tensor, task: Task) -> Tensor:
    """Return what probabilities (N, C) decide: the class (N,), the labels (N, K), or the values themselves."""
    if task == "classification":
        return values.argmax(-1)
    return (values >= 0.5) + 0 if task == "multilabel" else values


def said(answer: Tensor, class_names: Sequence[str], task: Task) -> str | float | list[float]:
    """Return a target or an answer in the words of the data set."""
    if task == "classification":
        return class_names[int(answer)]
    if task == "multilabel":
        return "|".join(name for name, on in zip(class_names, answer.tolist(), strict=True) if on)
    values: list[float] = answer.tolist()
    return values[0] if len(values) == 1 else values


def write_predictions(folder: Path, source: CachedSource, logits: Tensor) -> None:
    """Write `predictions.parquet` for the rows of a source, from their (N, C) logits."""
    header = source.store.header
    write_rows(folder, source.store.table(), source.rows, logits, header.class_names, header.task)


def write_rows(
    folder: Path,
    table: RowTable,
    whole: npt.NDArray[np.integer[Any]],
    logits: Tensor,
    class_names: Sequence[str],
    task: Task,
) -> None:
    """Write `predictions.parquet` for the rows `whole` of a table, from their (N, C) logits."""

    def group(start: int) -> pa.Table:
        """Return the lines of some rows: words for all of them at once would take more memory than the features."""
        rows = whole[start : start + ROW_GROUP]
        ids, targets = np.asarray(table.sample_id)[rows].tolist(), np.asarray(table.target)[rows]
        return prediction_table(ids, targets, logits[start : start + ROW_GROUP], class_names, task)

    first = group(0)

    def write(path: Path) -> None:
        with pa.parquet.ParquetWriter(path, first.schema) as writer:
            writer.write_table(first)
            for start in range(ROW_GROUP, len(whole), ROW_GROUP):
                writer.write_table(group(start))

    write_whole(folder / "predictions.parquet", write)
