"""How ILA gets into a ViT: modules between its blocks, adapters inside them, and the grid of patches that both must know."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.models import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import BackboneError
from featurecache.peft import Adapted
from featurecache.peft._inter_layer import Form, InterLayerAdapter, Norm, Size, Skip, grid_of, rows_of
from featurecache.peft._module import untouched
from featurecache.peft._stages import numbers_in, prefix_of, trunk_of
from featurecache.peft.full import Line

Inside = Literal["none", "adapter", "convpass"]
Placement = Literal["both", "mlp", "after"]
Compat = Literal["none", "published"]

PUBLISHED_DROPOUT = 0.1
"""After attention and perceptron of every block, in training."""


class Grid:
    """The grid of the patches at the block that is under way."""

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


class Between(InterLayerAdapter):
    """A module that hears a block."""

    alpha = 1.0

    def follow(self, grid: Grid, block: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        """Return the block's output after the module; at alpha 0 the backbone is left alone, its grid too."""
        if self.alpha == 0:
            return None
        size = grid.size
        grid.size = self.after(size)
        return self(out, size, self.alpha)  # type: ignore[no-any-return]


class Inside_(nn.Module):
    """(B, T, D) -> (B, T, D): bottleneck in a block, with a convolution over the patches where asked."""

    alpha = 1.0

    def __init__(self, width: int, form: Form, *, prefix: int, conv: bool) -> None:
        super().__init__()
        self.prefix = prefix
        self.down, self.up = nn.Linear(width, form.rank), nn.Linear(form.rank, width)
        self.conv = nn.Conv2d(form.rank, form.rank, form.kernel, padding=form.kernel // 2) if conv else None
        self.drop = DropPath(form.drop_path) if form.drop_path else nn.Dropout(form.dropout)
        for part in filter(None, (self.down, self.up, self.conv)):
            nn.init.xavier_uniform_(part.weight)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.bias, std=1e-6)
        if form.zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
        self.held: Tensor | None = None

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Return what is added to the stream."""
        found = F.gelu(self.down(tokens))
        if self.conv is not None:
            single = self.conv(found[:, : self.prefix].flatten(0, 1)[:, :, None, None])
            prefix = single.reshape(len(found), self.prefix, -1)
            found = F.gelu(torch.cat([prefix, rows_of(self.conv(grid_of(found[:, self.prefix :], size)))], 1))
        added = self.drop(self.up(found))
        return added if self.alpha == 1 else self.alpha * added  # type: ignore[no-any-return]

    def look(self, grid: Grid, norm: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        """Compute what the branch will be given beside its own, from the norm at its begin."""
        self.held = self(out, grid.size)

    def join(self, drop: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """Add it at the branch's end."""
        held, self.held = self.held, None
        assert held is not None, "the norm of a branch comes before its end"
        return out + held

    def follow(self, grid: Grid, block: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """Stand after the whole block."""
        return out + self(out, grid.size)


class Intermediates:
    """`forward_intermediates` of a model whose later blocks say smaller grids."""

    def __init__(self, trunk: Any, grid: Grid) -> None:
        self.trunk, self.grid = trunk, grid

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


def attach(
    module: nn.Module, method: str, *, form: Form, down: str, keep: str, skip: Skip, inside: Inside, placement: Placement,
    train_cls: bool, compat: Compat,
) -> Adapted:  # fmt: skip
    """Put inter-layer adapters after the blocks that `keep` and `down` name, and in-block adapters into all.

    Raises:
        BackboneError: not a ViT that could take them; names what would do.
        ConfigError: blocks that the model does not have, a grid too small, a number out of range.
    """
    trunk, prefix = trunk_of(module)
    check(*_form_problems(form))
    _check_vit(trunk, method)
    blocks, size = list(trunk.blocks), tuple(map(int, trunk.patch_embed.grid_size))
    shrinking = _down(down, len(blocks))
    keeping = _keep(keep, len(blocks), shrinking)
    grid, tokens = Grid(), prefix_of(trunk)
    base = untouched(module)
    added: dict[str, nn.Module] = {}
    if inside != "none":
        added |= _put_inside(trunk, grid, form, inside, placement, tokens)
    for number in sorted({*shrinking, *keeping}):
        falls = number in shrinking
        made = Between(int(trunk.embed_dim), form, prefix=tokens, shrinks=falls, skip=skip if falls else None)
        added[f"blocks.{number}.ila_{'down' if falls else 'keep'}"] = made
    sizes = _sizes(len(blocks), size, added)
    like = next(trunk.parameters())
    for name, part in added.items():
        owner, _, own = name.rpartition(".")
        trunk.get_submodule(owner).add_module(own, part.to(device=like.device, dtype=like.dtype).eval())
        if isinstance(part, Between):
            trunk.get_submodule(owner).register_forward_hook(partial(part.follow, grid))
    _tell(trunk, grid, shrinking)
    return _adapted(module, base, trunk, prefix, added, sizes, train_cls, compat)


def _form_problems(form: Form) -> list[tuple[bool, str]]:
    return [
        (form.rank > 0, f"rank must be positive, got {form.rank}"),
        (form.kernel > 0, f"kernel must be positive, got {form.kernel}"),
        (form.dilation > 0, f"dilation must be positive, got {form.dilation}"),
        (form.groups >= 0, f"groups must not be negative, got {form.groups}"),
        (0 <= form.dropout < 1, f"dropout must lie in [0, 1), got {form.dropout}"),
        (0 <= form.drop_path < 1, f"drop_path must lie in [0, 1), got {form.drop_path}"),
    ]
