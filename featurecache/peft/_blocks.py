"""The blocks of a vision transformer as methods see them: two residual branches each, of timm's models and of open_clip's.

A branch is x + drop(scale(core(norm(x)))), where core is the attention or the perceptron, and begins and ends with a
linear map. What does not look like this is refused: a method must not half fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from featurecache.errors import BackboneError
from featurecache.peft._module import image_side
from featurecache.peft._multihead import opened

OF_TIMM: tuple[str, ...] = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")
OF_OPEN_CLIP = ("ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2")


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One residual branch of a block."""

    norm: Any
    core: Any
    """The attention, or the perceptron."""
    first: Any
    """Linear map at the begin of the core (query, key and value in one; or fc1); has `weight` and `bias`."""
    last: Any
    """Linear map at its end (proj, or fc2)."""
    scale: nn.Module
    """LayerScale, or the identity."""
    drop: nn.Module
    """Drop path; the same as `scale` where there is none. Its output is added to the stream."""

    def ended(self, values: Tensor) -> Tensor:
        """Return (B, T, D) as scale and drop path leave it, a second time: with draws of its own."""
        scaled: Tensor = self.scale.forward(values)
        return scaled if self.drop is self.scale else self.drop.forward(scaled)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One block."""

    module: nn.Module
    attention: Branch
    mlp: Branch

    @property
    def branches(self) -> tuple[Branch, Branch]:
        """Return both, in the order of the stream."""
        return self.attention, self.mlp


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Transformer:
    """The image side of a model."""

    body: Any
    """Whose blocks these are."""
    blocks: tuple[Block, ...]
    width: int
    """D of the stream."""
    prefix: int
    """Tokens that stand before the patches: class token, registers."""
    class_token: nn.Parameter | None
    patches: Any
    """Convolution that makes the patch tokens."""
    patches_norm: nn.Module
    """Norm right after it, or the identity."""
    norm: nn.Module
    """The final norm."""

    @property
    def tokens(self) -> int:
        """Return how many tokens a block is given."""
        height, width = self.grid
        return self.prefix + height * width

    @property
    def grid(self) -> tuple[int, int]:
        """Return rows and columns of the patches for the model's own image size."""
        side = getattr(getattr(self.body, "patch_embed", self.body), "grid_size", None) or (0, 0)
        return int(side[0]), int(side[1])


def transformer_of(module: nn.Module, method: str) -> Transformer:
    """Return the vision transformer that a module is, or holds as the image tower of CLIP.

    Raises:
        BackboneError: it is none whose blocks `method` could change; says what is missing.
    """
    body: Any = image_side(module)[0]
    body = getattr(body, "trunk", body)
    why = _why_not(body)
    if why:
        raise BackboneError(f"{type(body).__name__} cannot take the method {method}: {why}.")
    return _of_timm(body) if hasattr(body, "blocks") else _of_open_clip(body)


def positioned(vit: Transformer, method: str) -> Transformer:
    """Return the transformer, whose attention must not depend on which token stands where.

    Raises:
        BackboneError: positions are part of its attention, so that no token can be added.
    """
    if any(hasattr(block.attention.core, name) for block in vit.blocks for name in ("rel_pos", "rope")) or (
        getattr(vit.body, "shared_rel_pos", None) is not None
    ):
        raise BackboneError(
            f"{type(vit.body).__name__} cannot take the method {method}: its attention knows positions of patches alone, so "
            "no token can be added."
        )
    return vit


def _why_not(body: Any) -> str:
    blocks = getattr(body, "blocks", None)
    names, core = OF_TIMM, ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    if blocks is None:
        blocks = getattr(getattr(body, "transformer", None), "resblocks", None)
        names, core = OF_OPEN_CLIP, ("attn.in_proj_weight", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not len(blocks):
        return "it is no plain vision transformer (it has no row of blocks)"
    lacking = sorted({name for block in blocks for name in (*names, *core) if _part(block, name) is None})
    if lacking:
        return f"its blocks have no {', '.join(lacking)}"
    if not any(hasattr(body, name) for name in ("norm", "ln_post")):
        return "it has no final norm"
    return "" if _patches(body) is not None else "it makes its patches by no convolution"


def _part(block: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        block = getattr(block, name, None)
    return block


def _patches(body: Any) -> Any:
    found = getattr(body, "conv1", None) or getattr(getattr(body, "patch_embed", None), "proj", None)
    return found if isinstance(found, nn.Conv2d) else None


def _of_timm(body: Any) -> Transformer:
    blocks = tuple(
        Block(
            block,
            Branch(block.norm1, block.attn, block.attn.qkv, block.attn.proj, block.ls1, block.drop_path1),
            Branch(block.norm2, block.mlp, block.mlp.fc1, block.mlp.fc2, block.ls2, block.drop_path2),
        )
        for block in body.blocks
    )
    norm = body.fc_norm if isinstance(body.norm, nn.Identity) else body.norm
    return Transformer(
        body=body, blocks=blocks, width=int(body.embed_dim), prefix=int(body.num_prefix_tokens),
        class_token=getattr(body, "cls_token", None), patches=body.patch_embed.proj,
        patches_norm=getattr(body.patch_embed, "norm", None) or nn.Identity(), norm=norm,
    )  # fmt: skip


def _of_open_clip(body: Any) -> Transformer:
    blocks = tuple(
        Block(
            block,
            Branch(block.ln_1, opened(block.attn), block.attn.qkv, block.attn.out_proj, block.ls_1, block.ls_1),
            Branch(block.ln_2, block.mlp, block.mlp.c_fc, block.mlp.c_proj, block.ls_2, block.ls_2),
        )
        for block in body.transformer.resblocks
    )
    return Transformer(
        body=body, blocks=blocks, width=int(body.conv1.out_channels), prefix=1, class_token=body.class_embedding,
        patches=body.conv1, patches_norm=nn.Identity(), norm=body.ln_post,
    )  # fmt: skip


Change = Callable[[Tensor, Tensor], Tensor]
"""(what a part was given, what it gave) -> what it is to give."""
