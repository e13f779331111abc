"""What a run says of rows that are not its own: from a store or from images, with classes matched by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from featurecache.registry import nearest
from featurecache.sources.cached import CachedSource, split_rows
from featurecache.stores import FeatureStore, is_store, open_store
from featurecache.threads import suited_threads
from pipelines._roles import read_store_in_roles
from pipelines._training_rows import TrainingRows, describe_overlap, sign_rows
from pipelines.predicting.gathering import some_rows
from pipelines.predicting.predictor import OnError, Predictor
from pipelines.training.outputs import outputs_of

Split = Literal["auto", "all", "train", "val", "test"]
"""Rows that are measured; another name of a split may stand in its place."""
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
    warning: str = ""
    """Why this is no test, where rows are training images of the run."""


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
    test: str, record: Mapping[str, Any], head: nn.Module, *, split: str, classes: Sequence[str], device: str,
    known: Callable[[], TrainingRows | None] = lambda: None,
) -> Judged:  # fmt: skip
    """Return what the head says of the rows of a store of the same features; no image is touched.

    `known` is asked for the samples that the run was trained on.

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
    if split == "auto":
        store, remarks = _in_roles(store, record)
    else:
        remarks = []
        _check_split(test, split, store.table())
    readable = split_rows(store, *ANY_SPLIT)
    asked = _asked(
        test, store.table(), readable, header.class_names, header.task, header.dataset, record, split, classes
    )
    asked.notes.extend(remarks)
    coarse = {held[a["name"]].dtype for a in features["arrays"]} - {a["dtype"] for a in features["arrays"]}
    asked.notes.extend([f"its features are kept as {', '.join(coarse)}, those of the run were not"] if coarse else [])
    source = CachedSource(store, [name for name, _ in arrays], asked.rows)
    with suited_threads(len(source)):
        logits = outputs_of(head, source, device)[0]
    judged = _judged(str(header.dataset.get("name", test)), store.table(), asked, logits, record["task"])
    trained = known()
    if trained is None:
        return judged
    features = sign_rows(store, arrays[0][0], asked.rows) if trained.signatures else None
    if features is None and not _is_own(header.dataset, record):
        return judged
    overlap = trained.overlap([str(name) for name in judged.sample_ids], features)
    return replace(judged, warning=describe_overlap(overlap, len(judged.targets)))


def _is_own(identity: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Return whether data are those that the run was trained on, by their fingerprint."""
    return bool(identity.get("fingerprint") == record["features"]["data"].get("fingerprint"))


def _in_roles(store: FeatureStore, record: Mapping[str, Any]) -> tuple[FeatureStore, list[str]]:
    """Return a store with its splits as the run read them, if it is its own, else as training would; and what is to be said."""
    identity = store.header.dataset
    if not _is_own(identity, record) and str(identity.get("split_rule", "digest")).startswith("digest"):
        return store, []
    same = _is_own(identity, record) and identity.get("split_rule") == record["features"]["data"].get("split_rule")
    own = record.get("splits", {}).get("test") if same else None  # else it was divided anew since
    store, roles = read_store_in_roles(store, own)
    return store, [roles.remark.partition(": ")[2]] if roles else []


def _check_split(test: str, split: str, table: RowTable) -> None:
    """Refuse a split that no row is in; names those that there are.

    Raises:
        ConfigError: says so.
    """
    there = sorted({str(name) for name in table.split} - {""})
    if split != "all" and split not in there:
        raise ConfigError([
            f"{test} has no rows in a split {split!r}.{nearest(split, there)} It has {', '.join(there) or 'none'}; all: every row"
        ])  # fmt: skip


def from_data(
    test: str, predictor: Predictor, *, split: str, classes: Sequence[str], batch_size: int, on_error: OnError,
    quiet: bool = True, known: Callable[[], TrainingRows | None] = lambda: None,
) -> Judged:  # fmt: skip
    """Return what backbone and head say of the images of a data set.

    Raises:
        DatasetError, UnreadableSampleError: it cannot be opened, or an image not be read.
        ConfigError: it is of another task, or no class of it is known to the run.
    """
    dataset = with_rgb_conversion(open_dataset(test), predictor.convert)
    if split != "auto":
        _check_split(test, split, dataset.table)
    asked = _asked(
        test, dataset.table, np.arange(len(dataset)), dataset.class_names, dataset.task, dataset.identity,
        predictor.record, split, classes,
    )  # fmt: skip
    chosen = some_rows(dataset, asked.rows.tolist())
    logits, problems = predictor.logits(chosen, batch_size=batch_size, on_error=on_error, quiet=quiet)
    whole = _judged(dataset.name, dataset.table, asked, logits, predictor.task)
    if _is_own(dataset.identity, predictor.record) and (trained := known()) is not None:
        overlap = trained.overlap([str(name) for name in whole.sample_ids], None)
        whole = replace(whole, warning=describe_overlap(overlap, len(whole.targets)))
    return _without(whole, sorted(problems)) if problems else whole


def _asked(
    test: str, table: RowTable, readable: npt.NDArray[np.int64], class_names: Sequence[str], task: Task,
    identity: Mapping[str, Any], record: Mapping[str, Any], split: str, classes: Sequence[str],
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
    split: str,
) -> tuple[npt.NDArray[np.int64], list[str]]:
    column = np.asarray(table.split)[readable]
    own = _is_own(identity, record)
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
    return replace(
        judged, sample_ids=[judged.sample_ids[i] for i in keep], targets=judged.targets[keep],
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
        "warning": judged.warning,
    }  # fmt: skip


def _plain(value: Measured) -> dict[str, float | None]:
    numbers = {"value": value.value, "low": value.low, "high": value.high}
    return {name: number if np.isfinite(number) else None for name, number in numbers.items()}
