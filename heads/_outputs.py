"""What every head that is trained by steps does last: bring the outputs of a regression back to the units of its targets."""

from __future__ import annotations

from torch import Tensor, nn

from heads import HeadSpec


class Outputs(nn.Module):
    """Standardised values -> targets: y = deviation * z + mean, each column by its own; anything else is left as it is.

    A step moves every value by about the learning rate, so prices of 500,000 would never be reached from a start near zero.
    The statistics travel with the head, as those of `Inputs` do.
    """

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.scaled = spec.task == "regression" and spec.target_statistics is not None
        if self.scaled:
            assert spec.target_statistics is not None
            mean, deviation = spec.target_statistics
            self.register_buffer("mean", mean.clone())
            self.register_buffer("deviation", deviation.clone())

    def forward(self, values: Tensor) -> Tensor:
        """(B, C) -> (B, C)."""
        if not self.scaled:
            return values
        return values * self.get_buffer("deviation") + self.get_buffer("mean")

    def invert_affine(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (C, D) weight and (C,) bias that say through this what the given ones say in units of the targets."""
        if not self.scaled:
            return weight, bias
        mean, deviation = self.get_buffer("mean").to(bias.dtype), self.get_buffer("deviation").to(bias.dtype)
        return weight / deviation[:, None], (bias - mean) / deviation
