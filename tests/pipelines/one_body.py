"""What a source that learns must offer beside its batches, where one module is all of it that learns."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from featurecache.sources import ParameterGroup
from featurecache.sources.cached import Walk


class OneBody:
    """The part of a `TrainedSource` that is `body`; who extends it yields the batches."""

    body: nn.Module
    constants: Mapping[str, Tensor] = {}

    def walk(self, batch_size: int) -> Walk:
        return Walk(self, batch_size)

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(dict(self.body.named_parameters()))]

    def train(self, mode: bool) -> None:
        self.body.train(mode)

    def state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.body.state_dict().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.body.load_state_dict(state)

    def averages(self) -> list[Tensor]:
        return []
