"""Blocks of a transformer, in stages, and the words in which users name them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from featurecache.checks import check
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


def trunk_of(module: nn.Module) -> tuple[Any, str]:
    """Return (the transformer in timm's form that sees images, prefix of its names): inside a CLIP model, that of its tower."""
    sees, prefix = image_side(module)
    trunk = getattr(sees, "trunk", None)
    return (trunk, f"{prefix}trunk.") if isinstance(trunk, nn.Module) else (sees, prefix)


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
        f"{type(trunk).__name__} has no blocks that {method} could stand beside: it works on timm's ViTs "
        "(vit_*, deit_*, eva*, beit*, ...) and Swins (swin_*, swinv2_*), and on the ViTs of open_clip. Name one of these, or "
        "another --peft."
    )


def numbers_in(words: str, count: int, what: str) -> tuple[int, ...]:
    """Return the ascending block numbers that `0-5`, `3`, `0-2,5` or `none` name, both ends included.

    Raises:
        ConfigError: the words are no such list, or name blocks that a model of `count` blocks does not have.
    """
    if words.strip() in ("", "none"):
        return ()
    parts = [re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part) for part in words.split(",")]
    check((all(parts), f"{what} must name blocks, as 0-5, 3 or 0-2,5, or none, got {words!r}"))
    ends = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
    turned = [f"{first}-{last}" for first, last in ends if last < first]
    check((not turned, f"{what} {words!r} runs backwards in {', '.join(turned)}: give the lower number first"))
    found = sorted({number for first, last in ends for number in range(first, last + 1)})
    check((
        found[-1] < count,
        f"{what} {words!r} names block {found[-1]}, but this model has {count}, numbered 0-{count - 1}",
    ))  # fmt: skip
    return tuple(found)


def positions_of(grid: Tensor) -> Tensor:
    """(B, H, W, D) -> (B, D, H, W)."""
    return grid.permute(0, 3, 1, 2)
