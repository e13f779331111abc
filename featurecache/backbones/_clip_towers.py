"""Image towers of open_clip behind timm's interface for layers, each with its two last steps: pooling and projection."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Tower(Protocol):
    """What is needed to take features from an image tower."""

    body: nn.Module
    """With `forward_features` and `forward_intermediates` as timm has them, and its final norm as an attribute."""

    def pooled(self, final: Tensor) -> Tensor:
        """(B, D) from what the body gives last: the vector before the projection."""

    def projected(self, final: Tensor, pooled: Tensor) -> Tensor:
        """(B, E) in the space shared with the text, not L2-normalised."""

    def projection(self) -> Tensor | None:
        """(D, E), by which the pooled vector is multiplied there, without the bias; None where no linear map does it."""


def matrix_of(made: Any, width: int) -> Tensor | None:
    """Return (width, E), as which a projection of open_clip's multiplies rows; None where it is no linear map."""
    if made is None or isinstance(made, nn.Identity):
        return torch.eye(width)
    if isinstance(made, nn.Linear):
        return made.weight.T
    return made if isinstance(made, Tensor) else None


def tower_of(model: nn.Module) -> Tower:
    """Return the image tower of a model of open_clip."""
    visual: Any = model.visual
    if hasattr(visual, "trunk"):
        return TimmTower(visual)
    return ResNetTower(visual) if hasattr(visual, "attnpool") else TransformerTower(visual)


class TimmTower:
    """A model of timm with open_clip's projection, or with its own classifier as projection."""

    def __init__(self, visual: Any) -> None:
        self.body, self.head = visual.trunk, visual.head

    def pooled(self, final: Tensor) -> Tensor:
        """(B, D)."""
        found: Tensor = self.body.forward_head(final, pre_logits=True)
        return found

    def projected(self, final: Tensor, pooled: Tensor) -> Tensor:
        """(B, E)."""
        found: Tensor = self.head(self.body.forward_head(final) if self.body.num_classes else pooled)
        return found

    def projection(self) -> Tensor | None:
        """(D, E), or None: two layers, or pooling by attention."""
        parts = [part for part in self.head if not isinstance(part, (nn.Dropout, nn.Identity))]
        if self.body.num_classes:
            parts.append(self.body.get_classifier())
        if len(parts) > 1:
            return None
        return matrix_of(parts[0] if parts else None, int(self.body.num_features))


class TransformerTower:
    """open_clip's own ViT."""

    def __init__(self, visual: Any) -> None:
        self.visual, self.body = visual, Blocks(visual)

    def pooled(self, final: Tensor) -> Tensor:
        """(B, D); open_clip gives it by no public name."""
        found: Tensor = self.visual._pool(final)[0]
        return found

    def projected(self, final: Tensor, pooled: Tensor) -> Tensor:
        """(B, E)."""
        found: Tensor = pooled @ self.visual.proj
        return found

    def projection(self) -> Tensor | None:
        """(D, E)."""
        return matrix_of(self.visual.proj, self.visual.conv1.out_channels)


class ResNetTower:
    """The ResNet of CLIP, which pools by attention. Its pooled vector is what the last map of that attention is given."""

    def __init__(self, visual: Any) -> None:
        self.pool, self.body = visual.attnpool, Stages(visual)

    def pooled(self, final: Tensor) -> Tensor:
        """(B, D): the attention's output under the identity instead of its output map."""
        own: nn.Linear = self.pool.c_proj
        eye = torch.eye(own.in_features, device=final.device, dtype=own.weight.dtype)
        identity = {"c_proj.weight": eye, "c_proj.bias": eye.new_zeros(len(eye))}
        found: Tensor = functional_call(self.pool, identity, final)
        return found

    def projected(self, final: Tensor, pooled: Tensor) -> Tensor:
        """(B, E)."""
        found: Tensor = self.pool.c_proj(pooled)
        return found

    def projection(self) -> Tensor | None:
        """(D, E), of the last map of the attention that pools."""
        return matrix_of(self.pool.c_proj, self.pool.c_proj.in_features)


class Blocks(nn.Module):
    """The blocks of open_clip's own ViT, as timm would give them; the last one raw is what is pooled."""

    num_prefix_tokens = 1

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.cls_token = visual.class_embedding
        self.ln_post = visual.ln_post if visual.attn_pool is None else nn.Identity()
        """Where attention pools, `ln_post` is of its output, not of the stream."""
        self.count = len(visual.transformer.resblocks)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, T, D) of the last block, raw."""
        final: Tensor = self.forward_intermediates(images, indices=[])[0]
        return final

    def forward_intermediates(
        self, images: Tensor, indices: list[int] | None = None, return_prefix_tokens: bool = False, norm: bool = False,
        stop_early: bool = False, output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> Any:  # fmt: skip
        """Return (final, layers), or the layers alone; a layer is its patches, or (patches, class token)."""
        wanted = list(range(self.count)) if indices is None else indices
        taken = wanted if intermediates_only else sorted({*wanted, self.count - 1})
        found = self.visual.forward_intermediates(
            images, indices=taken, stop_early=stop_early, normalize_intermediates=norm, intermediates_only=True,
            output_fmt=output_fmt, output_extra_tokens=True,
        )  # fmt: skip
        patches, prefixes = found["image_intermediates"], found["image_intermediates_prefix"]
        given = dict(zip(taken, zip(patches, prefixes, strict=True), strict=True))
        layers = [given[index] if return_prefix_tokens else given[index][0] for index in wanted]
        return layers if intermediates_only else (self._sequence(*given[self.count - 1]), layers)

    def _sequence(self, patches: Tensor, prefix: Tensor) -> Tensor:
        return torch.cat([prefix, patches.flatten(2).transpose(1, 2) if patches.ndim == 4 else patches], 1)


class Stages(nn.Module):
    """Stem and stages of CLIP's ResNet, as timm would give them."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.count = 5

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, D, H, W) of the last stage."""
        final: Tensor = self.forward_intermediates(images, indices=[])[0]
        return final

    def forward_intermediates(
        self, images: Tensor, indices: list[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> Any:  # fmt: skip
        """Return (final, layers), or the layers alone, as maps."""
        wanted = list(range(self.count)) if indices is None else indices
        taken = wanted if intermediates_only else sorted({*wanted, self.count - 1})
        found = self.visual.forward_intermediates(
            images, indices=taken, normalize_intermediates=norm, intermediates_only=True, output_fmt=output_fmt,
            stop_early=not stop_early,  # open_clip 3.3 reads its flag the wrong way round here
        )["image_intermediates"]  # fmt: skip
        given = dict(zip(taken, found, strict=True))
        layers = [given[index] for index in wanted]
        return layers if intermediates_only else (given[self.count - 1], layers)
