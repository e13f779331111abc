"""From the stream of a layer to the features that are kept: norm, then class token, patch mean or grid of cell means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.errors import BackboneError


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """The output of one layer."""

    patches: Tensor
    """(B, D, H, W)."""
    prefix: Tensor | None
    """(B, P, D) class and register tokens, or None."""

    @property
    def width(self) -> int:
        """D."""
        return self.patches.shape[1]

    def normed(self, norm: nn.Module) -> Stream:
        """Return the stream with `norm` applied to all of its tokens."""
        if _takes_maps(norm):
            return Stream(norm(self.patches), self.prefix)
        size = self.patches.shape[-2:]
        tokens = self.patches.flatten(2).transpose(1, 2)
        if self.prefix is None:
            return Stream(norm(tokens).transpose(1, 2).unflatten(2, size), None)
        count = self.prefix.shape[1]
        tokens = norm(torch.cat([self.prefix, tokens], dim=1))
        return Stream(tokens[:, count:].transpose(1, 2).unflatten(2, size), tokens[:, :count])


def _takes_maps(norm: nn.Module) -> bool:
    name = type(norm).__name__
    return "2d" in name or "BatchNorm" in name or isinstance(norm, nn.GroupNorm)


def final_norm(module: nn.Module) -> tuple[str, nn.Module | None, int]:
    """Return (name, norm, width) of a model's final norm: `norm`, or `fc_norm` where that is the identity, or none."""
    for name in ("norm", "fc_norm"):
        norm = getattr(module, name, None)
        if not isinstance(norm, nn.Module) or isinstance(norm, (nn.Identity, nn.ModuleList)):
            continue
        weights = [p for p in norm.parameters(recurse=False) if p.ndim == 1]
        if weights:
            return name, norm, len(weights[0])
    return "none", None, 0


def token(kind: str, stream: Stream, has_class_token: bool) -> Tensor:
    """Return the features of one kind: "cls" and "mean" (B, D), "patch-grid:K" (B, K*K, D) row major.

    Raises:
        BackboneError: no such kind, or a class token of a model that has none.
    """
    if kind == "mean":
        return stream.patches.mean((2, 3))
    if kind == "cls":
        if not has_class_token or stream.prefix is None:
            raise BackboneError("this model has no class token, so --tokens cls cannot be had. Give --tokens mean.")
        return stream.prefix[:, 0]
    name, _, cells = kind.partition(":")
    if name == "patch-grid" and cells.isdigit() and int(cells) > 0:
        return F.adaptive_avg_pool2d(stream.patches, int(cells)).flatten(2).transpose(1, 2)
    raise BackboneError(f"there is no kind of token called {kind!r}. Known: cls, mean, patch-grid:K with K such as 4.")
