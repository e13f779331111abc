"""Features to train on: batches of the same form, whether they come from a store or from images through a backbone.

A file of this room offers a class with this contract; a head or a training loop never learns which one it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from featurecache.features import FeatureBatch

if TYPE_CHECKING:
    from torch import Tensor

Order = Literal["sequential", "shuffled", "blocks"]
"""Rows as they lie; a new permutation per seed; or permuted blocks of neighbouring rows, for stores larger than RAM."""


class FeatureSource(Protocol):
    """Yields `FeatureBatch`es of torch tensors: (B, D) float32 arrays, targets (B,) int64 or (B, K)."""

    constants: Mapping[str, Tensor]
    """Arrays of the classes and of no row, e.g. text/embedding (C, P, E), float32; {} where there are none."""

    def __len__(self) -> int:
        """Return the number of rows of one pass."""

    def batches(
        self, batch_size: int, *, order: Order = "sequential", seed: int = 0, start: int = 0
    ) -> Iterator[FeatureBatch]:
        """Yield every row once, but the first `start` of them; the order is a fixed function of `order` and `seed`."""

    def walk(self, batch_size: int) -> Iterable[FeatureBatch]:
        """Return an iterable of sequential batches that can be walked more than once."""


@dataclass(frozen=True, slots=True, eq=False)
class ParameterGroup:
    """Parameters that are trained at one rate."""

    values: Mapping[str, Tensor]
    lr_factor: float = 1.0
    """On the learning rate of the head."""
    weight_decay: float | None = None
    """None: that of the head."""


@runtime_checkable
class TrainedSource(Protocol):
    """A source whose features learn with the head: its batches carry gradients to parameters of its own."""

    def groups(self) -> list[ParameterGroup]:
        """Return the parameters to train."""

    def train(self, mode: bool) -> None:
        """Set training mode, as in `nn.Module`."""

    def state(self) -> dict[str, Tensor]:
        """Return copies of all that training changes, by name."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set what `state` returned."""

    def averages(self) -> list[Tensor]:
        """Return what follows the rows that were seen, such as the statistics of batch norms: processes share their mean."""
