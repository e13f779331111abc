"""What 16 bits, or 8, would take from every array: rows computed again in float32, and scored before and after the cast."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import logme
from featurecache.backbones import Backbone
from featurecache.datasets import ImageDataset
from featurecache.decoders import decoder_known_by
from featurecache.features import Task
from featurecache.progress import Stopwatch
from featurecache.recomputing import committed_arrays, sampled_batches
from featurecache.reports import Table
from featurecache.requests import request_of
from featurecache.sources.images import decoded
from featurecache.stores import FeatureStore
from pipelines.scores._rows import Rows
from pipelines.scores.ridge_loo import score as ridge_score

Floats = npt.NDArray[np.float32]

FEWEST = 20
"""Labelled rows below which a change of a score says nothing."""


def _float16(values: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _bfloat16(values: Floats) -> Floats:
    return torch.from_numpy(values).to(torch.bfloat16).float().numpy()


def _int8(values: Floats) -> Floats:
    """Return what is left in 255 steps of each channel (the last axis), whose largest value over all rows is the last step."""
    largest = np.abs(values).max(axis=tuple(range(values.ndim - 1)), keepdims=True)
    step = np.where(largest > 0, largest, 1) / 127
    return np.asarray(np.rint(values / step).clip(-127, 127) * step, np.float32)


FORMS: Mapping[str, Callable[[Floats], Floats]] = {
    "float16": _float16,
    "bfloat16": _bfloat16,
    "int8 per channel": _int8,
}
"""Name -> what float32 values are after a way there and back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What one form takes from one array."""

    array: str
    form: str
    overflow: int
    """Values that it cannot hold."""
    relative: float | None
    """Norm of the difference by that of the values; None where some overflow."""
    logme: float | None
    """Change of LogME; None where it cannot be scored."""
    ridge: float | None
    """Change of the leave-one-out R2 of a ridge probe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What every form takes from every array."""

    rows: int
    labelled: int
    precision: str
    losses: tuple[Loss, ...]
    remarks: tuple[str, ...]

    def table(self) -> Table:
        """Return one line for each array and form."""
        shown = [(loss.array, loss.form, loss.overflow, *(_told(v, "{:.1e}") for v in (loss.relative,)),
                  *(_told(v, "{:+.4f}") for v in (loss.logme, loss.ridge))) for loss in self.losses]  # fmt: skip
        title = f"precision: {self.rows} rows computed again ({self.labelled} with labels), against float32"
        columns = ("array", "as", "overflow", "relative error", "change of LogME", "change of ridge R2")
        return Table(title, columns, shown, self.remarks)

    def json(self) -> dict[str, Any]:
        """Return everything the table says."""
        return asdict(self)


def _told(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def measure(backbone: Backbone, dataset: ImageDataset, store: FeatureStore, samples: int) -> Precision:
    """Compute at least `samples` rows of a store again, cast them, and score both; the clean view alone."""
    header, arrays = store.header, committed_arrays(store)
    batches = sampled_batches(store, arrays, samples)
    request, status = request_of(header.tokens, arrays), store.status()
    kept: dict[str, list[Floats]] = {spec.name: [] for spec in arrays}
    rows: list[int] = []
    for batch, images, unread in decoded(
        backbone, dataset, batches, Stopwatch(), on_error="skip", decoder=decoder_known_by(header.backbone)
    ):
        outputs = backbone.forward(images[0].to(backbone.device), request)
        places = [place for place, row in enumerate(batch) if status[row] == "ok" and place not in unread]
        rows += [batch[place] for place in places]
        for name, values in kept.items():
            values.append(outputs[name].float().cpu().numpy()[places])
    targets = np.asarray(store.table().target)[rows]
    known = np.asarray(targets >= 0 if targets.ndim == 1 else ~np.isnan(targets.astype(np.float64)).any(1))
    reason = _too_few(targets[known])
    precision = str(header.backbone.get("precision", "fp32"))
    remarks = [reason] if reason else []
    if precision != "fp32":
        remarks.append(f"the backbone computes in {precision}: what that takes from float32 is not in this table")
    scored = [spec.name for spec in arrays if len(spec.tail) == 1 and not reason]
    losses = [
        loss
        for name, values in kept.items()
        for loss in _losses(name, np.concatenate(values), known if name in scored else None, targets, header.task)
    ]
    return Precision(
        rows=len(rows), labelled=int(known.sum()), precision=precision, losses=tuple(losses), remarks=tuple(remarks)
    )


def _too_few(targets: npt.NDArray[Any]) -> str:
    more = "LogME and the ridge probe are left out. Give a larger --recompute"
    if len(targets) < FEWEST:
        return f"{len(targets)} labelled rows are too few to score (at least {FEWEST}): {more}."
    if len(np.unique(targets, axis=0)) < 2:
        return f"all labelled rows that were computed again are alike: {more}."
    return ""


def _losses(
    name: str, values: Floats, known: npt.NDArray[np.bool_] | None, targets: npt.NDArray[Any], task: Task
) -> list[Loss]:
    exact = None if known is None else _scores(values[known], targets[known], task)
    size = float(np.linalg.norm(values.astype(np.float64)))
    found = []
    for form, cast in FORMS.items():
        after = cast(values)
        overflow = int((~np.isfinite(after)).sum())
        whole = not overflow
        lost = float(np.linalg.norm((after - values).astype(np.float64))) / size if whole and size else None
        now = _scores(after[known], targets[known], task) if whole and exact and known is not None else None
        changes = [b - a for a, b in zip(exact, now, strict=True)] if exact and now else [None, None]
        found.append(Loss(array=name, form=form, overflow=overflow, relative=lost, logme=changes[0], ridge=changes[1]))
    return found


@contextmanager
def _remarks_left_out() -> Iterator[None]:
    """Leave out what scores remark on a sample (columns without labels, a lambda at the edge), for every array and form."""
    log = logging.getLogger("featurecache")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", logme.LogMEWarning)
            yield
    finally:
        log.setLevel(before)


def _scores(values: Floats, targets: npt.NDArray[Any], task: Task) -> Sequence[float]:
    """Return LogME and the leave-one-out R2 of ridge of rows (N, D)."""
    plain = np.unique(targets, return_inverse=True)[1].reshape(-1) if task == "classification" else targets
    with _remarks_left_out():
        return logme.logme(values, plain, task=task), ridge_score(Rows.of(values, plain, task))
