"""What both factorisations of FacT share: two maps for the whole model, small cores for each linear map of each block.

The delta of a map is scale * V C U. What reads or makes several widths (fc1, fc2) has as many cores side by side.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import BackboneError
from featurecache.peft import Adapted
from featurecache.peft._blocks import Transformer, transformer_of
from featurecache.peft._injection import Injection, Part
from featurecache.peft._start import Compat, linear, overwrite


class Shared(Part):
    """U and V of all blocks, and what the cores are made of."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = linear(width, rank, bias=False)
        self.up = linear(rank, width, bias=False, start="zero")

    def core(self, block: int, name: str) -> Tensor:
        """(made * r, given * r) matrix of one map of a block, acting on columns."""
        raise NotImplementedError


class MakeShared(Protocol):
    """How a factorisation is built: `made` counts the widths that fc1 makes and fc2 reads."""

    def __call__(self, *, width: int, rank: int, depth: int, made: tuple[int, int]) -> Shared:
        """Return the shared part."""


class Change(Part):
    """The delta of one linear map of one block."""

    def __init__(self, shared: Shared, block: int, name: str, scale: float, dropout: float) -> None:
        super().__init__()
        self._shared = (shared,)  # in a tuple: it belongs to the model, and is listed there once
        self.block, self.name, self.scale = block, name, scale
        self.dropout = nn.Dropout(dropout)

    def added(self, given: Tensor, found: Tensor) -> Tensor:
        """(B, T, g * D), (B, T, m * D) -> (B, T, m * D)."""
        (shared,) = self._shared
        width, rank = shared.down.in_features, shared.down.out_features
        core = shared.core(self.block, self.name)
        code = shared.down(given.reshape(*given.shape[:-1], -1, width)).flatten(-2)
        code = self.dropout(code @ core.T)
        delta: Tensor = shared.up(code.reshape(*code.shape[:-1], -1, rank)).flatten(-2)
        return found + self.scale * self.strength * delta

    def delta(self) -> Tensor:
        """(m * D, g * D), the same change as one matrix."""
        (shared,) = self._shared
        rank, core = shared.down.out_features, shared.core(self.block, self.name)
        cores = core.reshape(core.shape[0] // rank, rank, -1, rank)
        found = torch.einsum("or,mrgs,si->mogi", shared.up.weight, cores, shared.down.weight)
        return self.scale * self.strength * found.flatten(0, 1).flatten(1)


def factorised(
    module: nn.Module, method: str, make: MakeShared, *, rank: int, scale: float, dropout: float, compat: Compat
) -> Adapted:
    """Add factorised changes to all linear maps of all blocks.

    Raises:
        BackboneError: the module is no vision transformer whose maps are as wide as its stream, or a multiple.
    """
    vit = transformer_of(module, method)
    made = _multiples(vit, method)
    check(
        (
            1 <= rank <= vit.width,
            f"rank must lie in 1..{vit.width}, the width of {type(vit.body).__name__}, got {rank}",
        ),
        (scale > 0, f"scale must be positive, got {scale}"),
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
    )
    put, changes = Injection(module), list[tuple[Any, Change]]()
    shared = put.add(vit.body, "fact", make(width=vit.width, rank=rank, depth=len(vit.blocks), made=made))
    if compat == "osu":
        overwrite(shared)
    for number, block in enumerate(vit.blocks):
        attention, mlp = block.branches
        for name, point in (("qkv", attention.first), ("proj", attention.last), ("fc1", mlp.first), ("fc2", mlp.last)):
            part = put.add(block.module, f"fact_{name}", Change(shared, number, name, scale, dropout))
            put.after(point, part.added)
            changes.append((point, part))

    def fold() -> None:
        for point, part in changes:
            point.weight.add_(part.delta())

    return put.adapted(fold=fold)


def _multiples(vit: Transformer, method: str) -> tuple[int, int]:
    """Return how often the width of the stream goes into what fc1 makes and what fc2 reads."""
    first, last, width = vit.blocks[0].mlp.first, vit.blocks[0].mlp.last, vit.width
    sides = (vit.blocks[0].attention.last.in_features, first.out_features, last.in_features)
    if sides[0] != width or any(side % width for side in sides):
        raise BackboneError(
            f"{type(vit.body).__name__} cannot take the method {method}: its attention is {sides[0]} and its perceptron "
            f"{sides[1]} wide, which must be {width}, the width of its stream, and a multiple of it."
        )
    return first.out_features // width, last.in_features // width
