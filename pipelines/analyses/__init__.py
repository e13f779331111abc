"""Looking into models and stores, without training. One analysis, one file: `analyse(subjects, ids, batch_size, **options) -> Analysis`.

A subject is a store, or a model that sees images while it is looked at. Its `options` are keyword-only and have defaults.
Beside that a file defines `PAPER`, its source, and `SAMPLES`, how many it looks at when the user names no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from featurecache.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.sections import Section

ANALYSES = Registry("analysis", "pipelines.analyses")


class Subject(Protocol):
    """What is looked at."""

    name: str
    ids: Sequence[str]
    """Samples that it can be asked for."""

    def features(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """Return layer -> (n, ...) values of some samples, shallow to deep."""

    def attention(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """Return block -> (n, H, T, T) attention after the softmax, shallow to deep.

        Raises:
            BackboneError, StoreContentsError: it has none that can be seen.
        """


@dataclass(frozen=True, slots=True)
class Analysis:
    """What an analysis found."""

    section: Section
    """For people, and in `values` for machines."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Name -> content of files to write beside the page."""


class Analyse(Protocol):
    """What `analyse` in every file of this room must accept."""

    def __call__(self, subjects: Sequence[Subject], ids: Sequence[str], batch_size: int, **options: Any) -> Analysis:
        """Look at the samples.

        Raises:
            ConfigError: options out of range, or subjects of a kind that this analysis cannot look at.
        """
