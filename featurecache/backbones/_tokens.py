"""From the stream of a layer to the features that are kept: norm, then single tokens, all of them, or means of patches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.errors import BackboneError

KNOWN = "cls, register, mean, all, patch-grid:K with K such as 4"


@dataclass(frozen=True, slots=True)
class Prefix:
    """Which tokens stand before the patches of a model: its class token first, its registers last."""

    has_class: bool = False
    registers: int = 0


class Stream:
    """The output of one layer. The norm is applied to no token that is not asked for."""

    def __init__(
        self, output: Tensor, prefix: Tensor | None, kinds: Prefix, size: tuple[int, int], norm: nn.Module | None
    ) -> None:
        """Keep `output`, (B, D, H, W) or (B, H*W, D) with `size` (H, W), and `prefix`, (B, P, D) made of `kinds`."""
        self.output, self.prefix, self.kinds, self.size, self.norm = output, prefix, kinds, size, norm

    @cached_property
    def patches(self) -> Tensor:
        """(B, D, H, W) or (B, H*W, D) after the norm; kept, since several kinds of token are made from it."""
        if self.norm is None:
            return self.output
        if takes_maps(self.norm):
            return self.norm(self.output if self.output.ndim == 4 else self._as_map(self.output))
        return self.norm(self.output.flatten(2).transpose(1, 2) if self.output.ndim == 4 else self.output)

    def _as_map(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, self.size)

    def class_token(self) -> Tensor:
        """(B, D).

        Raises:
            BackboneError: there is none.
        """
        if self.prefix is None or not self.kinds.has_class:
            raise BackboneError("this model has no class token, so --tokens cls cannot be had. Give --tokens mean.")
        return self._normed(self.prefix[:, 0])

    def registers(self) -> Tensor:
        """(B, R, D).

        Raises:
            BackboneError: there is none.
        """
        if self.prefix is None or not self.kinds.registers:
            raise BackboneError("this model has no registers, so --tokens register cannot be had. Leave it out.")
        return self._normed(self.prefix[:, -self.kinds.registers :])

    def all(self) -> Tensor:
        """(B, T, D) what stands before the patches, then these row by row: the order of the model itself."""
        patches = self.patches.flatten(2).transpose(1, 2) if self.patches.ndim == 4 else self.patches
        return patches if self.prefix is None else torch.cat([self._normed(self.prefix), patches], 1)

    def _normed(self, tokens: Tensor) -> Tensor:
        return tokens if self.norm is None else self.norm(tokens)

    def mean(self) -> Tensor:
        """(B, D) mean of the patch tokens."""
        return self.patches.mean((2, 3)) if self.patches.ndim == 4 else self.patches.mean(1)

    def cells(self, count: int) -> Tensor:
        """(B, count * count, D) means of the cells of a grid, row major."""
        patches = self.patches if self.patches.ndim == 4 else self._as_map(self.patches)
        return F.adaptive_avg_pool2d(patches, count).flatten(2).transpose(1, 2)


def takes_maps(norm: nn.Module) -> bool:
    """Return whether a norm wants (B, D, H, W), not (..., D)."""
    name = type(norm).__name__
    return "2d" in name or "BatchNorm" in name or isinstance(norm, nn.GroupNorm)


def final_norm(module: nn.Module) -> tuple[str, nn.Module | None, int]:
    """Return (name, norm, width) of a model's final norm: `norm`, `fc_norm` where that is the identity, CLIP's `ln_post`."""
    for name in ("norm", "fc_norm", "ln_post"):
        norm = getattr(module, name, None)
        if not isinstance(norm, nn.Module) or isinstance(norm, (nn.Identity, nn.ModuleList)):
            continue
        weights = [p for p in norm.parameters(recurse=False) if p.ndim == 1]
        if weights:
            return name, norm, len(weights[0])
    return "none", None, 0


def token(kind: str, stream: Stream) -> Tensor:
    """Return the features of one kind.

    "cls" and "mean" are (B, D), "register" (B, R, D), "all" (B, T, D), "patch-grid:K" (B, K*K, D) row major.

    Raises:
        BackboneError: no such kind, or a class token or registers of a model that has none.
    """
    makers = {"cls": stream.class_token, "register": stream.registers, "mean": stream.mean, "all": stream.all}
    if kind in makers:
        return makers[kind]()
    name, _, cells = kind.partition(":")
    if name == "patch-grid" and cells.isdigit() and int(cells) > 0:
        return stream.cells(int(cells))
    raise BackboneError(f"there is no kind of token called {kind!r}. Known: {KNOWN}.")
