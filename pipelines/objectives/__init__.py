"""What training minimises. One transfer method, one file: `build(*, options) -> Objective`.

An objective knows outputs and batches; it knows no backbone, no store and no optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from featurecache.features import FeatureBatch
from featurecache.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

OBJECTIVES = Registry("objective", "pipelines.objectives")


class Loss(NamedTuple):
    """A loss to minimise, and the parts it is made of, for the history."""

    total: Tensor
    """() mean over the batch."""
    parts: dict[str, Tensor]


class Objective(Protocol):
    """A module that turns a model's outputs into a loss."""

    def __call__(self, outputs: Mapping[str, Tensor], batch: FeatureBatch) -> Loss:
        """`outputs["logits"]` is (B, C); the batch carries targets and, for some methods, teacher features."""
