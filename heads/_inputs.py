"""What every head does first: standardise its arrays with the training rows' statistics, and join them if it reads one vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from featurecache.errors import ConfigError
from heads import HeadSpec


class Inputs(nn.Module):
    """Arrays of a batch -> the same arrays, standardised, in the order of the spec. The statistics travel with the head."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.names = tuple(spec.shapes)
        self.standardised = bool(spec.statistics)
        self.widths = tuple(_width(name, shape) for name, shape in spec.shapes.items())
        self.combine = spec.combine
        if self.combine == "mean" and len(set(self.widths)) > 1:
            widths = ", ".join(f"{name} {width}" for name, width in zip(self.names, self.widths, strict=True))
            raise ConfigError([f"layers of different widths have no mean ({widths}). Give --layers concat"])
        for number, name in enumerate(self.names if self.standardised else ()):
            mean, deviation = spec.statistics[name]
            self.register_buffer(f"mean_{number}", mean.clone())
            self.register_buffer(f"deviation_{number}", deviation.clone())

    @property
    def width(self) -> int:
        """D of the joined vector."""
        return self.widths[0] if self.combine == "mean" else sum(self.widths)

    def forward(self, arrays: Mapping[str, Tensor]) -> list[Tensor]:
        """Return one (B, D) tensor an array."""
        if not self.standardised:
            return [arrays[name] for name in self.names]
        return [
            (arrays[name] - getattr(self, f"mean_{number}")) / getattr(self, f"deviation_{number}")
            for number, name in enumerate(self.names)
        ]

    def joined(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Return the arrays as one vector each row, (B, D): concatenated, or their mean."""
        values = self(arrays)
        if len(values) == 1:
            return values[0]
        return torch.stack(values).mean(0) if self.combine == "mean" else torch.cat(values, dim=-1)


def _width(name: str, shape: tuple[int, ...]) -> int:
    if len(shape) != 1:
        raise ConfigError(
            [f"{name} has {len(shape)} axes a row {shape}, this head reads vectors. Give --tokens cls or mean"]
        )
    return shape[0]
