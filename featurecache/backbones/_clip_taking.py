"""Features of a CLIP image tower: as of any model with layers, and the vector that meets the text."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from featurecache.backbones import BackboneOptions
from featurecache.backbones._clip_towers import Tower
from featurecache.backbones._taking import Shape, Taker


class ClipTaker(Taker):
    """Takes features from an image tower. Called with (B, 3, H, W) images and a request."""

    def __init__(self, tower: Tower, options: BackboneOptions, projected_dim: int) -> None:
        super().__init__(tower.body, options)
        self.tower, self.projected_dim = tower, projected_dim

    def describe(self, input_size: tuple[int, int, int]) -> Shape:
        """Return what the tower gives, from one forward pass of an empty image."""
        return dataclasses.replace(super().describe(input_size), logits=0, projected=self.projected_dim)

    def _pooled(self, final: Tensor) -> Tensor:
        return self.tower.pooled(final)

    def _projected(self, final: Tensor, embedding: Tensor) -> Tensor:
        return self.tower.projected(final, embedding)
