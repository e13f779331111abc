"""What stands beside a head and its backbone in an online training: teachers, and an objective that heeds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from featurecache.sources import FeatureSource
from featurecache.sources.live import LiveSource
from pipelines.objectives import Objective
from pipelines.training.distributed import Ranks


class Guide(Protocol):
    """What `train_online` asks when there are teachers."""

    def begin(
        self, sources: Mapping[str, LiveSource], likelihood: Objective, ranks: Ranks
    ) -> tuple[FeatureSource, Objective]:
        """Return (training rows with what the teachers say of them, what is minimised)."""

    @property
    def reshuffles(self) -> bool:
        """Whether every epoch has another order."""

    @property
    def keeps_best(self) -> bool:
        """Whether the values that are best on validation are kept, and not the last ones."""

    def end(self, sources: Mapping[str, LiveSource], head: nn.Module, ranks: Ranks) -> dict[str, Any]:
        """Write what was learnt beside head and backbone; return what the record says of it."""
