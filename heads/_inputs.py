"""What every head does first: standardise its arrays with the training rows' statistics, and join them if it reads one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from featurecache.errors import ConfigError
from heads import HeadSpec


class Inputs(nn.Module):
    """Arrays of a batch -> the same arrays, standardised, in the order of the spec. The statistics travel with the head.

    A head reads vectors, (D,) a row, unless it says `tokens`: then (T, D) is welcome too, and all positions of an array
    share one mean and deviation of each feature, so that what a position holds stays comparable with its neighbours.
    """

    def __init__(self, spec: HeadSpec, *, tokens: bool = False) -> None:
        super().__init__()
        self.names = tuple(spec.shapes)
        self.standardised = bool(spec.statistics)
        self.widths = tuple(_width(name, shape, tokens) for name, shape in spec.shapes.items())
        self.combine = spec.combine
        if self.combine == "mean" and len(set(self.widths)) > 1:
            widths = ", ".join(f"{name} {width}" for name, width in zip(self.names, self.widths, strict=True))
            raise ConfigError([f"layers of different widths have no mean ({widths}). Give --layers concat"])
        for number, name in enumerate(self.names if self.standardised else ()):
            mean, deviation = _pooled(*spec.statistics[name])
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

    def equals(self, other: Inputs) -> bool:
        """Return whether the other reads the same arrays in the same way, so that heads of both can be solved together."""
        ours, theirs = self.state_dict(), other.state_dict()
        alike = (self.names, self.widths, self.combine) == (other.names, other.widths, other.combine)
        return alike and ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)

    def joined(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Return the arrays as one vector each row, (B, D): concatenated, or their mean."""
        values: list[Tensor] = self(arrays)
        if len(values) == 1:
            return values[0]
        return torch.stack(values).mean(0) if self.combine == "mean" else torch.cat(values, dim=-1)


def alike(every: Sequence[Inputs]) -> list[list[int]]:
    """Return the places of inputs that read the same, together."""
    found: list[list[int]] = []
    for place, inputs in enumerate(every):
        for group in found:
            if every[group[0]].equals(inputs):
                group.append(place)
                break
        else:
            found.append([place])
    return found


def _width(name: str, shape: tuple[int, ...], tokens: bool) -> int:
    if len(shape) != 1 and not (tokens and len(shape) == 2):
        raise ConfigError(
            [f"{name} has {len(shape)} axes a row {shape}, this head reads vectors. Give --tokens cls or mean"]
        )
    return shape[-1]


def _pooled(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Return (D,) mean and deviation over rows and positions, from those over the rows at each of T positions."""
    if mean.ndim == 1:
        return mean, deviation
    variance = deviation.double().square().mean(0) + mean.double().var(0, correction=0)
    return mean.mean(0), variance.sqrt().to(deviation.dtype)
