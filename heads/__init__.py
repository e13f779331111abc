"""Light heads: features in, logits out. One file per head; the file name is the head's name.

A file of this room defines `CONSUMES`, saying what it reads when the user names no layers: "last" or "all" layers,
"tokens" (the last layer's many tokens), or "projected" (the joint space of image and text); `LEARNING_RATE`, the one it
trains with when the user names none; and `build(spec, *, options) -> nn.Module` with keyword-only options that have
defaults. Where it applies it also defines `PAPER`, the source; `CONSTANTS`, the arrays of the classes that it needs, e.g.
("text/embedding",); `CONVERGES`, up to how many training rows it is solved instead of being trained by steps, where nothing is
said of the steps (`HeadSpec.converge`); `FITTED`, how a head of which no parameter is trained comes to its values, such as "closed form";
`STANDARDISED = False`, where it reads features as they are, such as CLIP's directions; and `FORMER`, the defaults of heads
that were saved before a head file held all of its options.

The module's `forward` takes the mapping of arrays that a `FeatureBatch` carries, (B, D) or (B, T, D) each in float32, and
returns (B, C) logits. A module whose options named files has `travelling`, the options that rebuild it from its own values
instead. A head that can be solved is also a `ClosedForm`; its file may define
`solve_together(heads, batches, validation)`, which solves many of them for little more than one. Parameters that require no gradient
are not trained.
The same heads serve cached and online training: nothing here knows where its features come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from featurecache.features import FeatureBatch, Task
from featurecache.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

HEADS = Registry("head", "heads")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HeadSpec:
    """What a head is built for: the arrays it reads, in order, and what it is to say about them."""

    shapes: Mapping[str, tuple[int, ...]]
    """Array name -> shape of one row, (D,) or (T, D); the order is shallow to deep."""
    num_classes: int
    """C outputs: classes, or target columns."""
    task: Task = "classification"
    combine: Literal["concat", "mean"] = "concat"
    """How a head that reads one vector joins several arrays."""
    statistics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Array name -> (mean, standard deviation) over the training rows, float32 of a row's shape; {}: used as they are."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """Class-level arrays of the source, e.g. text embeddings (C, P, E)."""
    target_statistics: tuple[Tensor, Tensor] | None = None
    """(mean, standard deviation) of the (C,) target columns of a regression over the training rows, float32: what a head that
    is trained by steps says is scaled by them, so that ages and prices are learnt alike; None: said as it is."""
    converge: bool = False
    """Whether a head that is usually trained by steps is to be solved alone: where rows are few."""


@runtime_checkable
class ClosedForm(Protocol):
    """A head whose values, or the start of whose training, come from a closed form."""

    def solve(
        self, batches: Iterable[FeatureBatch], validation: Iterable[FeatureBatch] | None = None
    ) -> dict[str, float]:
        """Set the values from training batches that can be walked more than once; return what was chosen, for the record.

        Rows of `validation` are only chosen on; most heads choose by leave-one-out and need none.
        """


class BuildHead(Protocol):
    """What `build` in every file of this room must accept."""

    def __call__(self, spec: HeadSpec, **options: Any) -> nn.Module:
        """Build the head with values drawn from torch's global generator."""
