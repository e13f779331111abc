"""The grid of patches in a ViT whose later blocks may work on smaller ones."""

from __future__ import annotations

import inspect
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor

from featurecache.peft._inter_layer import Size, grid_of


class Grid:
    """The grid at the block that is under way."""

    def __init__(self) -> None:
        self.size: Size = (0, 0)
        self.sizes: dict[int, Size] = {}
        """Block -> grid of what it says."""

    def look(self, embedding: Any, given: tuple[Tensor, ...]) -> None:
        """Begin with the images that come."""
        height, width = embedding.dynamic_feat_size(given[0].shape[-2:])
        self.size = (int(height), int(width))

    def note(self, number: int, *_: Any) -> None:
        """Remember the grid that block `number` leaves."""
        self.sizes[number] = self.size


class Intermediates:
    """`forward_intermediates` of a model whose later blocks say smaller grids."""

    def __init__(self, trunk: Any, grid: Grid) -> None:
        self.trunk, self.grid = trunk, grid
        self.__signature__ = inspect.signature(trunk.forward_intermediates)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take the layers as rows, and lay each out on its own grid where maps are asked for."""
        original = type(self.trunk).forward_intermediates
        bound = inspect.signature(original).bind(self.trunk, *args, **kwargs)
        bound.apply_defaults()
        as_maps = bound.arguments["output_fmt"] == "NCHW"
        bound.arguments["output_fmt"] = "NLC"
        found = original(*bound.args, **bound.kwargs)
        if not as_maps:
            return found
        taken = sorted(feature_take_indices(len(self.trunk.blocks), bound.arguments["indices"])[0])
        return self._laid_out(found, [self.grid.sizes[number] for number in taken])

    def _laid_out(self, found: Any, sizes: list[Size]) -> Any:
        if isinstance(found, dict):
            return {**found, "image_intermediates": self._laid_out(found["image_intermediates"], sizes)}
        if isinstance(found, tuple):
            return (found[0], self._laid_out(found[1], sizes))
        return [
            (grid_of(layer[0], size), *layer[1:]) if isinstance(layer, tuple) else grid_of(layer, size)
            for layer, size in zip(found, sizes, strict=True)
        ]
