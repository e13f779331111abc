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

from featurecache.features import Task
from featurecache.files import write_atomic
from featurecache.metrics import Measured, measure
from featurecache.sources.cached import CachedSource
from pipelines._fitting import outputs_of


def evaluate(head: nn.Module, source: CachedSource, task: Task, device: str) -> tuple[dict[str, Any], Tensor]:
    """Return (metric name -> value and interval, (N, C) logits) of a head over the rows of a store."""
    logits, targets = outputs_of(head, source, device)
    groups = np.asarray(source.store.table().group)[source.rows].tolist()
    measured = measure(logits.numpy(), targets.numpy(), task, groups=groups)
    return {name: _plain(value) for name, value in measured.items()}, logits


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
    table, header = source.store.table(), source.store.header
    ids, targets = np.asarray(table.sample_id)[source.rows], np.asarray(table.target)[source.rows]
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(prediction_table(ids.tolist(), targets, logits, header.class_names, header.task), sink)
    write_atomic(folder / "predictions.parquet", sink.getvalue().to_pybytes())
