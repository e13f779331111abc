"""What a run says of rows that are not its own: from a store or from images, with classes matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featurecache.datasets import RowTable, open_dataset, with_rgb_conversion
from featurecache.errors import ConfigError, StoreContentsError, StoreMismatchError
from featurecache.features import Task, differences
from featurecache.metrics import Measured, measure
from featurecache.places import is_url, placed
from featurecache.sources.cached import CachedSource, split_rows
from featurecache.stores import is_store, open_store
from featurecache.threads import suited_threads
from pipelines.predicting.gathering import some_rows
from pipelines.predicting.predictor import OnError, Predictor
from pipelines.training.outputs import outputs_of

Split = Literal["auto", "all", "train", "val", "test"]
ANY_SPLIT = ("train", "val", "test", "")
NOT_COMPARED = ("batch_size", "views")
"""Of an identity of features: how many images went through together, and which views there are beside the clean one."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Judged:
    """N rows, what they are and what the run says of them, in the C classes that it may choose among."""

    source: str
    """Name of the data set."""
    task: Task
    class_names: list[str]
    sample_ids: Sequence[str]
    targets: npt.NDArray[Any]
    """(N,) or (N, C), in the order of `class_names`."""
    logits: Tensor
    """(N, C)."""
    groups: Sequence[str]
    notes: list[str]
    """What was left out, and what is missing."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Asked:
    """The rows of a test that can be measured, and how its classes meet those of the run."""

    rows: npt.NDArray[np.int64]
    targets: npt.NDArray[Any]
    class_names: list[str]
    columns: list[int]
    """Of the run's logits."""
    notes: list[str]


def is_a_store(test: str) -> bool:
    """Return whether a text names a store, not a data set."""
    return is_url(test) or (Path(test).exists() and is_store(Path(test)))


def from_store(
    test: str, record: Mapping[str, Any], head: nn.Module, *, split: Split, classes: Sequence[str], device: str
) -> Judged:
    """Return what the head says of the rows of a store of the same features; no image is touched.

    Raises:
        StoreMismatchError: its features are of another kind; names what differs.
        StoreContentsError: it lacks arrays that the head reads, or rows.
        ConfigError: it is of another task, or no class of it is known to the run.
    """
    if record.get("trained_backbone_parameters"):
        raise StoreMismatchError(
            f"the run trained its backbone, so {test}, which holds features of the frozen one, is not what its head reads. "
            "Name the images instead."
        )
    store = open_store(placed(test))
    header, features = store.header, record["features"]
    ours, theirs = (
        {k: v for k, v in d.items() if k not in NOT_COMPARED} for d in (header.backbone, features["backbone"])
    )
    found = differences(ours, theirs)
    if found:
        lines = "\n".join(f"  {name}: the run has {old!r}, the store {new!r}" for name, new, old in found)
        raise StoreMismatchError(
            f"{test} holds other features than the run was trained on:\n{lines}\nName its data set instead."
        )
    held = {spec.name: spec for spec in header.arrays}
    arrays = [(a["name"], tuple(a["tail"])) for a in features["arrays"]]
    lacking = [name for name, tail in arrays if name not in held or held[name].tail != tail]
    if lacking:
        raise StoreContentsError(
            f"{test} does not hold {', '.join(lacking)}, which the head reads. Extract again with --layers, --tokens and --extend."
        )
    readable = split_rows(store, *ANY_SPLIT)
    asked = _asked(
        test, store.table(), readable, header.class_names, header.task, header.dataset, record, split, classes
    )
    coarse = {held[a["name"]].dtype for a in features["arrays"]} - {a["dtype"] for a in features["arrays"]}
    asked.notes.extend([f"its features are kept as {', '.join(coarse)}, those of the run were not"] if coarse else [])
    source = CachedSource(store, [name for name, _ in arrays], asked.rows)
    with suited_threads(len(source)):
        logits = outputs_of(head, source, device)[0]
        return _judged(str(header.dataset.get("name", test)), store.table(), asked, logits, record["task"])


def from_data(
    test: str, predictor: Predictor, *, split: Split, classes: Sequence[str], batch_size: int, on_error: OnError,
    quiet: bool = True,
) -> Judged:  # fmt: skip
    """Return what backbone and head say of the images of a data set.

    Raises:
        DatasetError, UnreadableSampleError: it cannot be opened, or an image not be read.
        ConfigError: it is of another task, or no class of it is known to the run.
    """
    dataset = with_rgb_conversion(open_dataset(test), predictor.convert)
    asked = _asked(
        test, dataset.table, np.arange(len(dataset)), dataset.class_names, dataset.task, dataset.identity,
        predictor.record, split, classes,
    )  # fmt: skip
    chosen = some_rows(dataset, asked.rows.tolist())
    logits, problems = predictor.logits(chosen, batch_size=batch_size, on_error=on_error, quiet=quiet)
    whole = _judged(dataset.name, dataset.table, asked, logits, predictor.task)
    return _without(whole, sorted(problems)) if problems else whole


def _asked(
    test: str, table: RowTable, readable: npt.NDArray[np.int64], class_names: Sequence[str], task: Task,
    identity: Mapping[str, Any], record: Mapping[str, Any], split: Split, classes: Sequence[str],
) -> _Asked:  # fmt: skip
    """Return which rows are measured, in which classes, and what is to be said of the others."""
    if task != record["task"]:
        raise ConfigError([f"{test} holds a {task} task, but the run is a {record['task']}"])
    rows, notes = _rows_of(table, readable, identity, record, split)
    targets = np.asarray(table.target)[rows]
    known = targets >= 0 if targets.ndim == 1 else ~np.isnan(targets.astype(np.float64)).any(1)
    notes += [f"{(~known).sum()} rows without a label are left out"] if not known.all() else []
    rows, targets = rows[known], targets[known]
    shared = [name for name in classes if name in class_names]
    if not shared:
        raise ConfigError(
            [
                f"{test} and the run share no class: it has {', '.join(class_names[:10])}; the run {', '.join(classes[:10])}"
            ]
        )
    kept = list(classes) if task == "classification" else shared
    notes += _met(classes, class_names, record["class_names"], task)
    columns = [record["class_names"].index(name) for name in kept]
    if task != "classification":
        targets = targets[:, [list(class_names).index(name) for name in kept]]
    else:
        place = {name: number for number, name in enumerate(kept)}
        numbers = np.array([place.get(name, -1) for name in class_names], dtype=np.int64)[targets]
        notes += [f"{(numbers < 0).sum()} rows of other classes are left out"] if (numbers < 0).any() else []
        rows, targets = rows[numbers >= 0], numbers[numbers >= 0]
    if not len(rows):
        raise ConfigError(
            [f"{test} has no labelled row of these classes in the split {split}: nothing can be measured"]
        )
    return _Asked(rows=rows, targets=targets, class_names=kept, columns=columns, notes=notes)


def _met(classes: Sequence[str], theirs: Sequence[str], ours: Sequence[str], task: Task) -> list[str]:
    """Return what is to be said of classes that only one side has."""
    missing = [name for name in classes if name not in theirs]
    extra = [name for name in theirs if name not in ours]
    answer = "the run may still answer them" if task == "classification" else "not measured"
    notes = [f"classes that the data lack: {_some(missing)} ({answer})"] if missing else []
    return notes + ([f"classes that the run does not know: {_some(extra)}"] if extra else [])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _rows_of(
    table: RowTable,
    readable: npt.NDArray[np.int64],
    identity: Mapping[str, Any],
    record: Mapping[str, Any],
    split: Split,
) -> tuple[npt.NDArray[np.int64], list[str]]:
    column = np.asarray(table.split)[readable]
    own = identity.get("fingerprint") == record["features"]["data"].get("fingerprint")
    divided = not str(identity.get("split_rule", "digest")).startswith("digest")
    wanted = split if split != "auto" else "test" if (own or divided) and (column == "test").any() else "all"
    if wanted == "all":
        learned = int((column == "train").sum()) if own else 0
        return readable, [f"{learned} of these rows trained the head: this is no test"] if learned else ["all rows"]
    notes = [f"rows of the split {wanted}"]
    return readable[column == wanted], notes + (
        ["they trained the head: this is no test"] if own and wanted == "train" else []
    )


def _judged(source: str, table: RowTable, asked: _Asked, logits: Tensor, task: Task) -> Judged:
    return Judged(
        source=source, task=task, class_names=asked.class_names,
        sample_ids=np.asarray(table.sample_id)[asked.rows].tolist(), targets=asked.targets,
        logits=logits[:, asked.columns], groups=np.asarray(table.group)[asked.rows].tolist(), notes=asked.notes,
    )  # fmt: skip


def _without(judged: Judged, places: Sequence[int]) -> Judged:
    """Return the rows but those at some places, whose images could not be read."""
    keep = np.setdiff1d(np.arange(len(judged.targets)), places)
    if not len(keep):
        raise ConfigError([f"no image of {judged.source} can be read: nothing can be measured"])
    return Judged(
        source=judged.source, task=judged.task, class_names=judged.class_names,
        sample_ids=[judged.sample_ids[i] for i in keep], targets=judged.targets[keep],
        logits=judged.logits[torch.from_numpy(keep)], groups=[judged.groups[i] for i in keep],
        notes=[*judged.notes, f"{len(places)} images could not be read and are left out"],
    )  # fmt: skip


def measured(judged: Judged) -> dict[str, Any]:
    """Return source, rows, groups, classes, metrics with 95 % intervals by group, recall of every class, and notes."""
    grouped = any(judged.groups)
    found = measure(judged.logits.numpy(), judged.targets, judged.task, groups=list(judged.groups) if grouped else None)
    recalls = found.pop("per_class_recall", [])
    return {
        "source": judged.source, "rows": len(judged.targets), "groups": len(set(judged.groups)) if grouped else 0,
        "classes": judged.class_names,
        "metrics": {name: _plain(value) for name, value in found.items() if isinstance(value, Measured)},
        "recall": dict(zip(judged.class_names, recalls, strict=True)) if recalls else {}, "notes": judged.notes,
    }  # fmt: skip


def _plain(value: Measured) -> dict[str, float | None]:
    numbers = {"value": value.value, "low": value.low, "high": value.high}
    return {name: number if np.isfinite(number) else None for name, number in numbers.items()}
