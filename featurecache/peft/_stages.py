"""Blocks of a transformer in stages: all of a ViT, each resolution of a Swin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from featurecache.errors import BackboneError
from featurecache.peft._module import image_side

SWIN = (SwinTransformer, SwinTransformerV2)


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks that work on a stream of one shape."""

    first: int
    """Number of its first block; blocks are numbered through the whole net, from 0."""
    blocks: Sequence[nn.Module]
    width: int

    @property
    def numbers(self) -> range:
        """Numbers of its blocks."""
        return range(self.first, self.first + len(self.blocks))


def trunk_of(module: nn.Module) -> Any:
    """Return the transformer that sees images: the module, or inside a CLIP model that of its image tower."""
    sees = image_side(module)[0]
    return getattr(sees, "trunk", sees)


def is_vit(trunk: Any) -> bool:
    """Return whether it is a row of blocks on (B, T, D) tokens whose patches lie on a grid that timm tells."""
    return (
        isinstance(getattr(trunk, "blocks", None), (nn.Sequential, nn.ModuleList))
        and hasattr(trunk, "num_prefix_tokens")
        and isinstance(getattr(trunk, "embed_dim", None), int)
        and hasattr(getattr(trunk, "patch_embed", None), "dynamic_feat_size")
    )


def is_tower(trunk: Any) -> bool:
    """Return whether it is the image tower of an open_clip model in that library's own form."""
    return hasattr(getattr(trunk, "transformer", None), "resblocks") and hasattr(trunk, "grid_size")


def prefix_of(trunk: Any) -> int:
    """Return how many tokens of a ViT stand before its patches: class token, registers."""
    return 1 if is_tower(trunk) else int(trunk.num_prefix_tokens)


def stages_of(trunk: Any, method: str) -> list[Stage]:
    """Return the stages of a Swin, or the one of a ViT.

    Raises:
        BackboneError: it is neither; names what would do.
    """
    if isinstance(trunk, SWIN):
        found: list[Stage] = []
        layers: Any = trunk.layers
        for layer in layers:
            first = found[-1].numbers.stop if found else 0
            blocks: list[Any] = list(layer.blocks)
            found.append(Stage(first, blocks, int(blocks[0].dim)))
        return found
    if is_vit(trunk):
        return [Stage(0, list(trunk.blocks), int(trunk.embed_dim))]
    if is_tower(trunk):
        return [Stage(0, list(trunk.transformer.resblocks), int(trunk.conv1.out_channels))]
    raise BackboneError(
        f"{type(trunk).__name__} cannot take the method {method}: it has no blocks of a transformer. ViTs of timm and "
        "open_clip (vit_*, deit_*, eva*, beit*, ...) and Swins (swin_*, swinv2_*) can."
    )


def positions_of(grid: Tensor) -> Tensor:
    """(B, H, W, D) -> (B, D, H, W)."""
    return grid.permute(0, 3, 1, 2)
