"""The cells of a sweep of students: every combination of what it names, each a training of its own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from featurecache.checks import check, coerce
from featurecache.errors import ConfigError
from featurecache.registry import nearest
from pipelines.objectives import OBJECTIVES, PROBE, names
from pipelines.students.settings import TrainStudentConfig
from pipelines.training.cells import words_of

SWEPT: Mapping[str, type] = {
    "objective": str, "teachers": str, "prec": float, "seed": int, "lr": float, "backbone_lr": float, "prior_lr": float,
    "weight_decay": float,
}  # fmt: skip
ALIASES = {"wd": "weight_decay"}
OF_GUIDANCE = ("prec", "prior_lr", "prior_freq", "objective_option")
"""What says nothing where no distance is minimised."""
OF_A_STUDENT = ("student", "student_weights", "from_scratch", "image_size", "backbone_lr", "augment")
"""What says nothing where there is no student, beside its options and its transform."""
SHARED = "shared"
"""Folder of a sweep for what its cells share."""


@dataclass(frozen=True, slots=True, eq=False)
class StudentCell:
    """One training of a sweep."""

    config: TrainStudentConfig
    named: Mapping[str, Any]
    """What the sweep set, as far as it says something of this cell."""

    @property
    def name(self) -> str:
        """Its folder."""
        return ",".join(f"{name}={value}" for name, value in self.named.items())

    @property
    def group(self) -> tuple[str, str]:
        """(objective, teachers by number): what is compared."""
        return self.config.named, str(self.named.get("teachers", ""))

    @property
    def setting(self) -> tuple[tuple[str, Any], ...]:
        """What validation chooses, the seed being a repetition."""
        return tuple(
            (name, value) for name, value in self.named.items() if name not in ("objective", "teachers", "seed")
        )


def cells_of(config: TrainStudentConfig) -> list[StudentCell]:
    """Return every combination once; where an objective has no teachers, what is theirs is left out.

    Raises:
        ConfigError: lists every name and value of the sweep that means nothing.
    """
    values = _values(config)
    found: dict[str, StudentCell] = {}
    for picked in itertools.product(*values.values()):
        cell = _cell(config, dict(zip(values, picked, strict=True)))
        found.setdefault(cell.name, cell)
    _check_said(config, list(found.values()), values)
    return list(found.values())


def _values(config: TrainStudentConfig) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    problems: list[str] = []
    for given, words in config.sweep.items():
        name = ALIASES.get(given.replace("-", "_"), given.replace("-", "_"))
        if name not in SWEPT:
            near, known = nearest(name, list(SWEPT)), ", ".join(SWEPT)
            problems.append(f"sweep {given}: nothing that students are swept over.{near} There are {known}")
            continue
        try:
            listed = [
                part.strip() if isinstance(part, str) else part for word in words_of(words) for part in _parted(word)
            ]
        except ValueError as refused:
            problems.append(f"sweep {given}={words}: {refused}")
            continue
        try:
            found[name] = [coerce(one, SWEPT[name]) for one in listed]
        except (TypeError, ValueError):
            problems.append(f"sweep {given}={words}: these are not all of the type {SWEPT[name].__name__}")
            continue
        if len(set(found[name])) < len(found[name]):
            problems.append(f"sweep {given}={words}: a value is there twice")
    problems += _unknown_teachers(found.get("teachers", ()), len(config.teacher))
    check(*((False, problem) for problem in problems))
    order = [name for name in SWEPT if name in found]
    return {name: found[name] for name in order}


def _parted(word: Any) -> list[Any]:
    return re.split(r"[|,]", word) if isinstance(word, str) else [word]


def _unknown_teachers(sets: Sequence[str], count: int) -> list[str]:
    known = {str(number + 1) for number in range(count)}
    return [
        f"sweep teachers={one}: teachers are named by their order, 1 to {count}, joined by +, such as 1+2"
        for one in sets
        if not set(one.split("+")) <= known or len(set(one.split("+"))) < len(one.split("+"))
    ]


def _cell(config: TrainStudentConfig, named: dict[str, Any]) -> StudentCell:
    """Return the training of one combination."""
    changes: dict[str, Any] = {name: value for name, value in named.items() if name != "teachers"}
    if "seed" in named:
        changes["data_seed"] = named["seed"]
    one = replace(config, sweep={}, out=config.out, cache=config.cache or config.out / SHARED, **changes)
    if "teachers" in named and one.named != "none":
        one = replace(one, teacher=tuple(config.teacher[int(n) - 1] for n in named["teachers"].split("+")))
    start = {f.name: f.default for f in fields(TrainStudentConfig)}
    one = replace(one, objective_option=_known(one.named, one.objective_option))
    if one.weight is None:
        one = replace(one, prec=None, prior_lr=start["prior_lr"], prior_freq=1)
    if one.named == PROBE:
        one = replace(one, **{name: start[name] for name in OF_A_STUDENT}, backbone_option={}, transform={})
    silent = set(OF_GUIDANCE) if one.weight is None else set()
    silent |= {"teachers"} if one.named == "none" else set()
    silent |= {"backbone_lr"} if one.named == PROBE else set()
    told = {name: value for name, value in named.items() if name not in silent}
    cell = StudentCell(one, {"objective": one.named, **{k: v for k, v in told.items() if k != "objective"}})
    return StudentCell(replace(one, out=config.out / "cells" / cell.name), cell.named)


def options_of(name: str) -> list[str]:
    """Return the options of an objective; a name that is none of one has none."""
    if name == PROBE:
        return ["head"]
    if name == "none" or name not in OBJECTIVES.names():
        return []
    return list(OBJECTIVES.load(name).build.__kwdefaults__ or {})


def _known(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    own = options_of(name)
    return {key: value for key, value in options.items() if key.replace("-", "_") in own}


def _check_said(config: TrainStudentConfig, cells: Sequence[StudentCell], values: Mapping[str, Any]) -> None:
    """Refuse what would say nothing in any cell.

    Raises:
        ConfigError: lists it.
    """
    objectives = list(dict.fromkeys(cell.config.named for cell in cells))
    unknown = [name for name in objectives if name not in names()]
    if unknown:  # the one who plans the cell says so, with the nearest
        return
    owned = {option for name in objectives for option in options_of(name)}
    guides = any(cell.config.weight is not None for cell in cells)
    foreign = [name for name in config.objective_option if name.replace("-", "_") not in owned]
    said = ", ".join(objectives)
    needless = [name for name in ("prec", "prior_lr") if name in values] + ["prec"] * (config.prec is not None)
    problems = [f"no objective of {said} has an option {name!r}" for name in foreign]
    problems += [] if guides else [f"{name} is of the teachers, and objective {said} has none" for name in needless]
    if problems:
        raise ConfigError(problems)
