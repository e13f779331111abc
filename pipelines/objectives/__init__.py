"""What training minimises. One transfer method, one file: `build(dimensions, *, options) -> Objective`.

An objective knows outputs and batches; it knows no backbone, no store and no optimiser. `cross_entropy` is the likelihood of
the labels, and what `none` means; every other file measures how far a student is from the teachers whose rows its batches
carry, unweighted, and `guided` adds that to the likelihood. Such a file defines `PAPER`, the source; `PAIRS`, whether rows of
a batch are compared with each other, so that a part of a batch says something else; `OWN_RATE`, whether its values learn at
`prior_lr` instead of the student's rate; and `build` with keyword-only options that have defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from featurecache.features import FeatureBatch, Task
from featurecache.registry import Registry
from featurecache.sources import FeatureSource, ParameterGroup

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.objectives._guided import Guided

OBJECTIVES = Registry("objective", "pipelines.objectives")

PROBE = "concat_probe"
"""The objective that has no student: a probe on what all teachers say."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What an objective is built for."""

    student: int
    """d, width of the student's pooled vector."""
    teachers: tuple[int, ...]
    """D of each teacher, in their order."""
    task: Task = "classification"
    num_classes: int = 1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Material:
    """What an objective may look at once, before training."""

    teachers: Mapping[str, FeatureSource]
    """"train" and "val" -> rows of the teachers alone; no image is read."""
    student: FeatureSource
    """The training rows as the student sees them before training; a walk costs a pass over the images."""
    cache: Path | None = None
    """Folder of what several trainings share; None: nothing is kept."""
    keys: tuple[str, ...] = ()
    """One for each teacher, in their order: changes whenever its rows would; (): nobody else has seen them."""
    seed: int = 0
    device: str = "cpu"


class Loss(NamedTuple):
    """A loss to minimise, and the parts it is made of, for the history."""

    total: Tensor
    """() mean over the batch."""
    parts: dict[str, Tensor]


class Objective(Protocol):
    """A module that turns a model's outputs into a loss."""

    def __call__(self, outputs: Mapping[str, Tensor], batch: FeatureBatch) -> Loss:
        """`outputs["logits"]` is (B, C), `outputs["embedding"]` a student's pooled vector, (B, d).

        The batch carries targets and, for some methods, teacher features.
        """


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Guidance:
    """How a distance is added to the likelihood."""

    likelihood: Objective
    prec: float
    """Weight of the distance: the precision of the prior, in the words of AFT."""
    prior_factor: float = 1.0
    """Rate of the values that learn at a rate of their own, relative to that of the head."""
    prior_freq: int = 1
    """The student learns in every `prior_freq`-th step of an epoch, the first one included; the values in all of them."""


@runtime_checkable
class LearningObjective(Protocol):
    """An objective with values of its own, or one that has a say in how the student learns."""

    def prepare(self, source: Material) -> None:
        """Look at the rows once, before training."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the values to train, with their rates relative to that of the head."""

    def detach_student(self, step: int) -> bool:
        """Return whether only the objective's own values learn in this step of an epoch, the first being 0."""


def guided(name: str, dimensions: Dimensions, guidance: Guidance, options: Mapping[str, Any]) -> Guided:
    """Return the likelihood of the labels with the distance called `name` added.

    Raises:
        UnknownNameError: there is no such objective.
        ConfigError: lists every option that is wrong.
    """
    from pipelines.objectives._guided import built

    return built(name, dimensions, guidance, options)


def names() -> Sequence[str]:
    """Return the names that users give: the likelihood alone is called none."""
    return ["none", *(name for name in OBJECTIVES.names() if name != "cross_entropy"), PROBE]
