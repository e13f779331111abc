"""Linear probe: one affine map, the baseline that every other head must beat."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from heads import HeadSpec
from heads._inputs import Inputs

CONSUMES = "last"
LEARNING_RATE = 1e-3


class Linear(nn.Module):
    """Standardised features through one affine map."""

    def __init__(self, spec: HeadSpec, bias: bool) -> None:
        super().__init__()
        self.inputs = Inputs(spec)
        self.map = nn.Linear(self.inputs.width, spec.num_classes, bias=bias)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, D) -> (B, C) logits."""
        logits: Tensor = self.map(self.inputs.joined(arrays))
        return logits


def build(spec: HeadSpec, *, bias: bool = True) -> Linear:
    """Return a linear probe with torch's default start."""
    return Linear(spec, bias)
