"""How ILA gets into a ViT: modules between its blocks, adapters inside them, and the grid of patches that both must know."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import BackboneError
from featurecache.peft import Adapted
from featurecache.peft._blocks import Block, Transformer, transformer_of
from featurecache.peft._grid import Grid, Intermediates
from featurecache.peft._injection import Injection
from featurecache.peft._inter_layer import Form, InterLayerAdapter, Skip, Start, begin_linear, form_of, grid_of, rows_of
from featurecache.peft._line import Line
from featurecache.peft._placing import Network
from featurecache.peft._ranges import indices

Inside = Literal["none", "adapter", "convpass"]
Placement = Literal["both", "mlp", "after"]
Compat = Literal["none", "published"]

PUBLISHED_DROPOUT = 0.1
"""In training, after the attention and after the perceptron of every block, though the block is frozen."""


class Between(InterLayerAdapter):
    """A module that hears a block."""

    def __init__(self, grid: Grid, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.grid = grid

    def follow(self, given: Tensor, found: Tensor) -> Tensor:
        """Return a block's output after the module; at strength 0 the backbone is left alone, its grid too."""
        if self.strength == 0:
            return found
        size = self.grid.size
        self.grid.size = self.after(size)
        out: Tensor = self(found, size)
        return out


class InBlock(Network):
    """(B, T, D) -> (B, T, D): up(gelu(down(x))), with a convolution over the patches in between where asked."""

    def __init__(self, grid: Grid, width: int, form: Form, *, prefix: int, conv: bool) -> None:
        super().__init__()
        self.grid, self.prefix = grid, prefix
        self.down, self.up = nn.Linear(width, form.rank), nn.Linear(form.rank, width)
        self.conv = nn.Conv2d(form.rank, form.rank, form.kernel, padding=form.kernel // 2) if conv else None
        self.drop = DropPath(form.drop_path) if form.drop_path else nn.Dropout(form.dropout)
        begin_linear(self.down, self.up, zero=form.zero)
        if self.conv is not None:
            nn.init.xavier_uniform_(self.conv.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what is added to the stream, before dropout."""
        found = F.gelu(self.down(tokens))
        if self.conv is not None:
            found = F.gelu(self._mixed(self.conv, found))
        out: Tensor = self.strength * self.up(found)
        return out

    def _mixed(self, conv: nn.Conv2d, found: Tensor) -> Tensor:
        """Convolve the patches over their grid, and each token before them by itself."""
        single = conv(found[:, : self.prefix].flatten(0, 1)[:, :, None, None])
        patches = rows_of(conv(grid_of(found[:, self.prefix :], self.grid.size)))
        return torch.cat([single.reshape(found.shape[0], self.prefix, -1), patches], 1)

    def join(self, given: Tensor, found: Tensor) -> Tensor:
        """Add it where the branch beside it ends, dropped by itself."""
        added: Tensor = self.drop(self.held.take())
        return found + added

    def follow(self, given: Tensor, found: Tensor) -> Tensor:
        """Stand after the whole block."""
        added: Tensor = self.drop(self(found))
        return found + added


def put_ila(
    module: nn.Module, method: str, *, down: str, keep: str = "none", skip: Skip, inside: Inside = "none",
    placement: Placement = "both", start: Start | None, train_cls: bool, compat: Compat, **form: Any,
) -> Adapted:  # fmt: skip
    """Put in what the options of `ila` say; the start they leave open is as published with `compat`, and else zero.

    Raises:
        BackboneError, ConfigError: as `attach`.
    """
    made = form_of(start=start or ("random" if compat == "published" else "zero"), **form)
    return attach(
        module, method, form=made, down=down, keep=keep, skip=skip, inside=inside,
        placement=placement, train_cls=train_cls, compat=compat,
    )  # fmt: skip


def attach(
    module: nn.Module, method: str, *, form: Form, down: str, keep: str, skip: Skip, inside: Inside, placement: Placement,
    train_cls: bool, compat: Compat,
) -> Adapted:  # fmt: skip
    """Put inter-layer adapters after the blocks that `keep` and `down` name, and in-block adapters into all.

    Raises:
        BackboneError: not a ViT that could take them.
        ConfigError: blocks that the model does not have, a grid too small, a number out of range.
    """
    vit = _plain(transformer_of(module, method), method)
    count, grid = len(vit.blocks), Grid()
    shrinking = _down(down, count)
    keeping = _keep(keep, count, shrinking)
    _check(form, vit, shrinking, keeping, inside)
    if compat == "published":
        _drop_inside(vit)
    put = Injection(module)
    vit.body.patch_embed.register_forward_pre_hook(grid.look)
    for number, block in enumerate(vit.blocks):
        if inside != "none":
            _put_inside(put, vit, block, grid, form, inside, placement)
        for name, numbers in (("ila_keep", keeping), ("ila_down", shrinking)):
            if number in numbers:
                falls = name == "ila_down"
                made = Between(grid, vit.width, form, prefix=vit.prefix, shrinks=falls, skip=skip if falls else None)
                put.after(block.module, put.add(block.module, name, made).follow)
        block.module.register_forward_hook(partial(grid.note, number))
    if shrinking:
        vit.body.forward_intermediates = Intermediates(vit.body, grid)
    return _adapted(put, vit, train_cls, compat)


def _plain(vit: Transformer, method: str) -> Transformer:
    """Return a ViT of timm whose attention takes any number of tokens.

    Raises:
        BackboneError: it is another kind of model.
    """
    knows = any(hasattr(block.attention.core, name) for block in vit.blocks for name in ("rel_pos", "rope"))
    if not isinstance(vit.body, VisionTransformer) or knows:
        raise BackboneError(
            f"{type(vit.body).__name__} cannot take the method {method}: its attention knows where each patch stands, or its "
            "grid is not told as timm's does. timm's plain ViTs (vit_*, deit_*, with or without registers) can."
        )
    return vit


def _down(words: str, count: int) -> tuple[int, ...]:
    """Return the blocks after which the grid shrinks; auto parts the blocks into three groups of equal length."""
    if words == "auto":
        return tuple(sorted({max(0, count // 3 - 1), max(0, 2 * count // 3 - 1)} - {count - 1}))
    return () if words == "none" else tuple(indices(words, count, "down"))


def _keep(words: str, count: int, shrinking: tuple[int, ...]) -> tuple[int, ...]:
    """Return the blocks after which a module stands that keeps the grid; where both are named, it keeps."""
    if words == "rest":
        return tuple(number for number in range(count) if number not in shrinking)
    return () if words == "none" else tuple(indices(words, count, "keep"))


def _check(form: Form, vit: Transformer, shrinking: tuple[int, ...], keeping: tuple[int, ...], inside: Inside) -> None:
    both = ", ".join(str(number) for number in shrinking if number in keeping)
    padded = bool(keeping) or inside == "convpass" or (bool(shrinking) and vit.prefix > 0 and not form.prefix_conv)
    lost = form.dilation * (form.kernel - 1) * len(shrinking) if form.prefix_conv or not vit.prefix else 0
    rows, columns = vit.grid
    check(
        (form.rank > 0, f"rank must be positive, got {form.rank}"),
        (form.kernel > 0, f"kernel must be positive, got {form.kernel}"),
        (form.dilation > 0, f"dilation must be positive, got {form.dilation}"),
        (form.groups >= 0, f"groups must not be negative, got {form.groups}"),
        (0 <= form.dropout < 1, f"dropout must lie in [0, 1), got {form.dropout}"),
        (0 <= form.drop_path < 1, f"drop_path must lie in [0, 1), got {form.drop_path}"),
        (not both, f"down and keep both name block {both}: a module keeps the grid or shrinks it"),
        (not padded or form.kernel % 2 == 1, f"an even kernel cannot keep the grid, got {form.kernel}: give 3, 5, ..."),
        (
            min(rows, columns) > lost,
            f"the grid of {rows}x{columns} patches cannot lose {lost} rows and columns ({len(shrinking)} modules with "
            f"kernel {form.kernel}): name fewer blocks in down, a smaller kernel, or larger images by --image-size",
        ),
        (bool(shrinking or keeping or inside != "none"), "down, keep and inside are all none: there is nothing to train"),
    )  # fmt: skip


def _put_inside(
    put: Injection, vit: Transformer, block: Block, grid: Grid, form: Form, inside: Inside, placement: Placement
) -> None:
    named = {"ila_attention": block.attention, "ila_mlp": block.mlp}
    for name, branch in named.items() if placement == "both" else (("ila_mlp", block.mlp),):
        part = InBlock(grid, vit.width, form, prefix=vit.prefix, conv=inside == "convpass")
        put.add(block.module, name, part)
        if placement == "after":
            put.after(block.module, part.follow)
        else:
            part.stand(put, branch, "parallel")


def _drop_inside(vit: Transformer) -> None:
    """Give every block the dropout that the published model trains with."""
    for drop in _dropouts(vit):
        drop.p = PUBLISHED_DROPOUT


def _dropouts(vit: Transformer) -> list[nn.Dropout]:
    parts = [getattr(block.attention.core, "proj_drop", None) for block in vit.blocks]
    parts += [getattr(block.mlp.core, "drop2", None) for block in vit.blocks]
    return [part for part in parts if isinstance(part, nn.Dropout)]


def _adapted(put: Injection, vit: Transformer, train_cls: bool, compat: Compat) -> Adapted:
    """Return the module; the class token learns with the method, and between 0 and 1 it walks, as the skips do."""
    own = {id(value): name for name, value in put.module.named_parameters()}
    token = [own[id(vit.class_token)]] if train_cls and vit.class_token is not None else []
    skips = [
        own[id(p)] for part in put.parts if isinstance(part, Between) and part.skip for p in part.skip.parameters()
    ]
    line = Line(put.module, (*token, *skips))

    def scale(alpha: float) -> None:
        put.scale(alpha)
        line.scale(alpha)

    def train(mode: bool) -> None:
        put.train(mode)
        for drop in _dropouts(vit) if compat == "published" else ():
            drop.train(mode)

    return replace(put.adapted(also=token, tokens_per_layer=_tokens(vit)), scale=scale, train=train)


def _tokens(vit: Transformer) -> tuple[int, ...]:
    """Return how many tokens each block is given."""
    found, size = [], vit.grid
    for block in vit.blocks:
        found.append(vit.prefix + size[0] * size[1])
        between = getattr(block.module, "ila_down", None)
        size = between.after(size) if isinstance(between, Between) else size
    return tuple(found)
