"""Labels of a manifest: from text to class numbers, 0/1 of several labels, or numbers to predict."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurecache.datasets._columns import Columns
from featurecache.datasets._label_checks import BAR, MISSING, warn_of_no_separator, warn_of_odd_classes
from featurecache.features import Task

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
YES, NO = ("1", "true"), ("0", "false")


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Targets of all rows, and what they count."""

    task: Task
    names: tuple[str, ...]
    """Classes, or the names of what is predicted."""
    target: npt.NDArray[np.generic]
    """(N,) int64, (N, K) uint8 or (N, K) float32."""
    labelled: npt.NDArray[np.bool_]
    """(N,)."""
    problems: list[str]


def labels_of(
    columns: Columns, task: Task | None, classes: Sequence[str] | None, separator: str | None = None
) -> Labels:
    """Read the columns with labels.

    `label` alone holds a class, or several joined by `|`, or by `separator` ("|" alone: none of them). `label_NAME` columns hold 0 or 1,
    one label each. For regression every column with labels holds a number. Nothing at all: the row is unlabelled.
    `classes`: the only ones there may be, in this order; None: those that are seen. In classification a label is a name,
    whatever it looks like: "nan", "None", "1" and "01" are four classes.
    """
    problems = _wrong_separator(columns, task, separator)
    found = _read_labels(columns, task, classes, separator)
    found.problems.extend(problems)
    return found


def _wrong_separator(columns: Columns, task: Task | None, separator: str | None) -> list[str]:
    if separator is None:
        return []
    if columns.labels != ["label"]:
        return ["label_separator is given, and there is no column label that alone holds the labels"]
    wrong = task in ("classification", "regression")
    return [f"label_separator is given, which is for several labels in a cell, with task {task}"] if wrong else []


def _read_labels(columns: Columns, task: Task | None, classes: Sequence[str] | None, separator: str | None) -> Labels:
    if task == "regression":
        return _regression(columns, classes)
    if not columns.labels:
        return _single([""] * len(columns), columns, classes, ["there is no column with labels"] if task else [])
    if columns.labels == ["label"]:
        values = columns.values["label"]
        several = separator is not None or any(BAR in value for value in values)
        if task == "multilabel" or (task is None and several):
            if not several:
                warn_of_no_separator(values)
            return _joined(values, columns, classes, separator or BAR)
        warn_of_odd_classes(values, sure=task is not None or classes is not None)
        return _single(values, columns, classes, _doubtful(values, columns) if task is None and classes is None else [])
    return _one_for_each(columns, task, classes)


def _doubtful(values: list[str], columns: Columns) -> list[str]:
    """Return why labels that were not said to be classes may not be classes."""
    filled = [(row, value) for row, value in enumerate(values) if value]
    numbers = [(row, value) for row, value in filled if not math.isnan(_number(value))]
    broken = [(row, value) for row, value in numbers if not _is_whole(value)]
    if numbers and len(numbers) < len(filled):
        first = next((row, value) for row, value in filled if math.isnan(_number(value)))
        found = [numbers[0], first]
        return columns.listed("labels that are numbers beside names (task classification takes all as names)", found)
    what = "labels that are no whole numbers (say task regression, or task classification to take each as a class)"
    return columns.listed(what, broken)


def _number(text: str) -> float:
    """Return the number that a text is, written with digits; NaN for any other text, such as inf, nan or 1_000."""
    return float(text) if NUMBER.fullmatch(text) else math.nan


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isascii() and text.removeprefix("-").isdigit()


def _classes_seen(seen: set[str]) -> tuple[str, ...]:
    """Return the names sorted; by value where all are whole numbers, so that class 2 comes before class 10."""
    whole = all(map(_is_whole, seen))
    return tuple(sorted(seen, key=lambda name: (int(name), name) if whole else (0, name)))


def _strangers(found: list[tuple[int, str]], classes: Sequence[str], columns: Columns) -> list[str]:
    known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    return columns.listed(f"labels outside the classes {known}", found)


def _single(values: list[str], columns: Columns, classes: Sequence[str] | None, problems: list[str]) -> Labels:
    names = tuple(classes) if classes is not None else _classes_seen(set(values) - {""})
    number = {name: i for i, name in enumerate(names)}
    outside = [(row, value) for row, value in enumerate(values) if value and value not in number]
    target = np.array([number.get(value, -1) for value in values], dtype=np.int64)
    return Labels("classification", names, target, target >= 0, problems + _strangers(outside, names, columns))


def _joined(values: list[str], columns: Columns, classes: Sequence[str] | None, separator: str) -> Labels:
    cells = ["" if value == BAR else value for value in values]  # a bar alone: none of the labels
    parts = [[part.strip() for part in cell.split(separator) if part.strip()] for cell in cells]
    names = tuple(classes) if classes is not None else _classes_seen({part for row in parts for part in row})
    number = {name: i for i, name in enumerate(names)}
    target = np.zeros((len(values), len(names)), dtype=np.uint8)
    outside: list[tuple[int, str]] = []
    for row, row_parts in enumerate(parts):
        target[row, [number[part] for part in row_parts if part in number]] = 1
        outside += [(row, part) for part in row_parts if part not in number]
    labelled = np.array([value != "" for value in values])
    return Labels("multilabel", names, target, labelled, _strangers(outside, names, columns))


def _one_for_each(columns: Columns, task: Task | None, classes: Sequence[str] | None) -> Labels:
    problems = [] if task != "classification" else ["columns label_NAME give several labels, not one class: use label"]
    if "label" in columns.labels:
        problems.append(
            f"both label and {', '.join(n for n in columns.labels if n != 'label')}: only regression has both"
        )
    names = tuple(name.removeprefix("label_") for name in columns.labels)
    if classes is not None and set(names) != set(classes):
        problems.append(f"columns label_NAME for {', '.join(names)}, but the classes {', '.join(classes)}")
    target = np.zeros((len(columns), len(names)), dtype=np.uint8)
    filled = np.zeros(target.shape, dtype=bool)
    for k, column in enumerate(columns.labels):
        words = [value.lower() for value in columns.values[column]]
        target[:, k], filled[:, k] = [word in YES for word in words], [word != "" for word in words]
        other = [(row, word) for row, word in enumerate(words) if word and word not in (*YES, *NO)]
        problems += columns.listed(f"values of {column} other than 0 and 1", other)
    partly = np.flatnonzero(filled.any(1) & ~filled.all(1)).tolist()
    problems += columns.listed(
        "rows with some labels and not all", [(row, columns.values["path"][row]) for row in partly]
    )
    return Labels("multilabel", names, target, np.asarray(filled.all(1)), problems)


def _hint(no_number: list[tuple[int, str]]) -> str:
    words = [value for _, value in no_number]
    comma = any(NUMBER.fullmatch(value.replace(",", ".", 1)) for value in words)
    missing = any(value.lower() in MISSING for value in words)
    hints = [*(["write a decimal point, not a comma"] if comma else []),
             *(["leave the cell empty where there is none"] if missing else [])]  # fmt: skip
    return f", {' and '.join(hints)}" if hints else ""


def _regression(columns: Columns, classes: Sequence[str] | None) -> Labels:
    problems = ["classes are given, and regression has none"] if classes is not None else []
    if not columns.labels:
        problems.append("there is no column with labels")
    target = np.full((len(columns), len(columns.labels)), np.nan, dtype=np.float32)
    for k, column in enumerate(columns.labels):
        values = columns.values[column]
        target[:, k] = [_number(value) for value in values]
        finite = np.isfinite(target[:, k])
        no_number = [
            (row, value) for row, value in enumerate(values) if value and value.lower() != "nan" and not finite[row]
        ]
        problems += columns.listed(f"values of {column} that are no finite numbers{_hint(no_number)}", no_number)
    names = tuple(name.removeprefix("label_") for name in columns.labels)
    return Labels("regression", names, target, np.asarray(~np.isnan(target).any(1)), problems)
