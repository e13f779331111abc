"""What a protocol gives: trials, the trainings behind them, and which of their labels a table averages over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import ConfigError
from featurecache.stores import FeatureStore

Rows = npt.NDArray[np.int64]
SHOWN = 3
"""Ids that a message names."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some rows of a store, ascending."""

    store: FeatureStore
    rows: Rows

    def ids(self) -> list[str]:
        """Return the sample ids."""
        return [str(name) for name in np.asarray(self.store.table().sample_id)[self.rows]]

    def groups(self) -> set[str]:
        """Return the groups that the rows are of, without ""."""
        return {str(name) for name in np.asarray(self.store.table().group)[self.rows]} - {""}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Fold:
    """One training: rows that heads learn from, and rows that say when they were best. It knows no test rows."""

    name: str
    """Unique among the folds of a plan, and good as a file name."""
    train: Part
    validation: Part | None
    """None: the last values are kept."""
    standardise_by: Part | None = None
    """Rows whose features, without labels, say how features are standardised; None: those of `train`. Few rows know no scale."""
    seed: int = 0
    """Added to the seed of the heads' start and to that of the row order."""
    settings: Sequence[Mapping[str, Any]] = ()
    """What the protocol draws for every head, with a number: {"hparams_seed": 1, "lr_factor": 0.1, "seed": 7}; (): nothing.

    `seed` is added to the head's; `lr_factor` multiplies its rate; lr, weight_decay, momentum, batch_size, optimizer and
    schedule replace what the user says.
    """


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Judge:
    """Rows on which every setting of a fold is measured, for the choice of the setting."""

    name: str
    fold: Fold
    part: Part


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trial:
    """A fold, how its setting is chosen, and the rows that then are measured.

    Raises:
        ConfigError: a row or a group of the tests is also there where something is learnt or chosen.
    """

    name: str
    """Unique among the trials of a plan, and good as a file name."""
    labels: Mapping[str, Any]
    """How tables tell it, e.g. {"shots": 4, "seed": 1}."""
    fold: Fold
    tests: Mapping[str, Part]
    """Name -> rows; where the classes are not those of training, the head is built anew for them."""
    judges: Sequence[Judge] = ()
    """The setting with the best mean over these is taken; (): the one that is best on the fold's validation."""
    remarks: Sequence[str] = ()
    """What is to be said of its rows."""

    def __post_init__(self) -> None:
        learnt = [self.fold.train, self.fold.validation, self.fold.standardise_by]
        chosen = [part for judge in self.judges for part in (judge.fold.train, judge.fold.validation, judge.part)]
        problems = [
            problem
            for part in [*learnt, *chosen]
            for test in self.tests.values()
            if part is not None and (problem := _leak(part, test, self.name))
        ]
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))


def _leak(part: Part, test: Part, name: str) -> str:
    """Return what rows of a test are known before it, or ""."""
    if part.store.path != test.store.path:
        return ""
    both = np.intersect1d(part.rows, test.rows)
    if len(both):
        ids = ", ".join(Part(part.store, both[:SHOWN]).ids())
        return f"{name}: {len(both)} test rows are also learnt from or chosen on, such as {ids}. That measures nothing"
    groups = sorted(part.groups() & test.groups())
    if groups:
        some = ", ".join(groups[:SHOWN])
        return (
            f"{name}: {len(groups)} groups, such as {some}, are on both sides of the test: samples of a group are not "
            "independent, and are never separated"
        )
    return ""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """Every trial of a protocol on a store."""

    trials: Sequence[Trial]
    over: Sequence[str]
    """Labels that a table averages over, e.g. ("seed",)."""
    derived: Mapping[str, Callable[[Mapping[str, float]], float]] = field(default_factory=dict)
    """Name of a further line -> what makes it of the values of a trial's tests, e.g. their harmonic mean."""
    curve: str = ""
    """Label that a plot has on its axis; "": no plot says more than the table."""
