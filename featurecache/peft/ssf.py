"""Every channel of every linear map, norm and of the patches is scaled and shifted; it can be folded in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from featurecache.peft import Adapted
from featurecache.peft._blocks import Transformer, transformer_of
from featurecache.peft._injection import Injection, Part

PAPER = "Lian et al., Scaling & Shifting Your Features, NeurIPS 2022, https://arxiv.org/abs/2210.08823"
LEARNING_RATE = 1e-3
STARTS_AS_BACKBONE = False

SPREAD = 0.02
"""Deviation of scales from 1 and of shifts from 0 at the start."""


class Affine(Part):
    """scale * x + shift, channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.normal(1.0, SPREAD, (width,)))
        self.shift = nn.Parameter(torch.normal(0.0, SPREAD, (width,)))

    def now(self) -> tuple[Tensor, Tensor]:
        """Return (D,) scale and shift at the present strength."""
        if self.strength == 1:
            return self.scale, self.shift
        return 1 + self.strength * (self.scale - 1), self.strength * self.shift

    def moved(self, given: Tensor, found: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        scale, shift = self.now()
        return found * scale + shift

    def moved_maps(self, given: Tensor, found: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        scale, shift = self.now()
        return found * scale[:, None, None] + shift[:, None, None]


def apply(module: nn.Module) -> Adapted:
    """Scale and shift after the patches, norms and linear maps of every block, and after the final norm.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    vit = transformer_of(module, "ssf")
    put, folds = Injection(module), list[tuple[Any, Affine]]()
    patches = put.add(vit.body, "patches_affine", Affine(vit.patches.out_channels))
    put.after(vit.patches, patches.moved_maps)
    named: list[tuple[nn.Module, str, Any]] = []
    if not isinstance(vit.patches_norm, nn.Identity):
        named.append((vit.body, "patches_norm_affine", vit.patches_norm))
    for block in vit.blocks:
        for kind, branch in zip(("attention", "mlp"), block.branches, strict=True):
            named += [
                (block.module, f"{kind}_norm_affine", branch.norm), (block.module, f"{kind}_first_affine", branch.first),
                (block.module, f"{kind}_last_affine", branch.last),
            ]  # fmt: skip
    for owner, name, point in (*named, (vit.body, "final_affine", vit.norm)):
        part = put.add(owner, name, Affine(_width(point)))
        put.after(point, part.moved)
        folds.append((point, part))

    def fold() -> None:
        for point, part in folds:
            _fold(point, part)
        _fold_patches(vit, patches)

    return put.adapted(fold=fold)


def _width(point: Any) -> int:
    found: Any = getattr(point, "out_features", None) or point.weight.shape[0]
    return int(found)


def _fold(point: Any, part: Affine) -> None:
    """Fold into a linear map or a norm, whose outputs are rows of its weight."""
    scale, shift = part.now()
    point.weight.mul_(scale.view(-1, *[1] * (point.weight.ndim - 1)))
    if point.bias is None:
        point.bias = nn.Parameter(shift.clone(), requires_grad=False)
    else:
        point.bias.mul_(scale).add_(shift)


def _fold_patches(vit: Transformer, part: Affine) -> None:
    """Fold into the convolution of the patches; a shift that finds no bias there goes to the positions of the patches."""
    scale, shift = part.now()
    position = getattr(vit.body, "pos_embed", getattr(vit.body, "positional_embedding", None))
    if vit.patches.bias is None and position is not None and isinstance(vit.patches_norm, nn.Identity):
        vit.patches.weight.mul_(scale[:, None, None, None])
        height, width = vit.grid
        position[..., position.shape[-2] - height * width :, :] += shift
    else:
        _fold(vit.patches, part)
