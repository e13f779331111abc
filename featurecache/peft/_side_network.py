"""The compact side network of DTL: low-rank products of block inputs, summed beside the net and injected into its later blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.peft import Adapted
from featurecache.peft._injection import Held, Injection, Part
from featurecache.peft._patch_pooling import check_poolable, pool_patches_before_the_norm
from featurecache.peft._ranges import indices
from featurecache.peft._stages import SWIN, Stage, is_tower, positions_of, prefix_of, stages_of, trunk_of

Compat = Literal["none", "published"]
Mixing = Literal["default", "identity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the side network reads and writes."""

    products: tuple[int, ...]
    """Blocks whose input is read."""
    injections: tuple[int, ...]
    """Blocks whose output the side state is added to."""


class Product(nn.Module):
    """(..., D) -> (..., D) of rank r, without bias; zero at the start."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return up(down(tokens))."""
        out: Tensor = self.up(self.down(tokens))
        return out


class Mixer(nn.Conv2d):
    """Depth-wise K x K convolution that keeps the grid; an even K looks one position further on the far side."""

    def __init__(self, width: int, kernel: int, start: Mixing) -> None:
        super().__init__(width, width, kernel, groups=width, bias=False)
        if start == "identity":
            nn.init.zeros_(self.weight)
            with torch.no_grad():
                self.weight[:, :, (kernel - 1) // 2, (kernel - 1) // 2] = 1

    def forward(self, grid: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        before = (self.kernel_size[0] - 1) // 2
        after = self.kernel_size[0] - 1 - before
        return super().forward(F.pad(grid, (before, after, before, after)))


class SideNetwork(Part):
    """h <- h + product(block input); block output <- block output + mixer(h * sigmoid(beta * h)). h is never fed back."""

    def __init__(self, stages: Sequence[Stage], places: Places, beta: float, prefix_tokens: int) -> None:
        super().__init__()
        self.products, self.mixers = nn.ModuleDict(), nn.ModuleDict()
        self.places, self.beta, self.prefix_tokens = places, beta, prefix_tokens
        self.grid: tuple[int, int] | None = None
        """Of the patches of the images under way; a Swin's stream says it by its own shape."""
        self.held = Held()
        within = {number: index for index, stage in enumerate(stages) for number in stage.numbers}
        self.stage = {number: str(within[number]) for number in (*places.products, *places.injections)}

    @property
    def state(self) -> Tensor | None:
        """Return h, while a batch is under way and a product has been added."""
        found: Tensor | None = self.held.seen()
        return found

    def look(self, embedding: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
        """Note the grid of the images that come."""
        tells = getattr(embedding, "dynamic_feat_size", None)
        height, width = tells(given[0].shape[-2:]) if tells else out.shape[-2:]
        self.grid = (int(height), int(width))

    def forget(self, *_: Any) -> None:
        """Drop the state: a stage begins, or the last one is over."""
        self.held.put(None)

    def read(self, number: int, given: Tensor) -> Tensor:
        """Add the product of a block's input to the state."""
        product, state = self.products[str(number)](given), self.state
        self.held.put(product if state is None else state + product)
        return given

    def write(self, number: int, given: Tensor, found: Tensor) -> Tensor:
        """Return a block's output with what the state says of it."""
        state = self.state
        assert state is not None, "the first product of a stage stands before its first injection"
        if self.strength == 0:
            return found
        added = self._mixed(state * torch.sigmoid(self.beta * state), self.stage[number])
        return found + (added if self.strength == 1 else self.strength * added)

    def _mixed(self, active: Tensor, stage: str) -> Tensor:
        if stage not in self.mixers:
            return active
        mixer = self.mixers[stage]
        if active.ndim == 4:
            return mixer(positions_of(active)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]
        assert self.grid is not None, "the patch embedding comes before the blocks"
        prefix, patches = active[:, : self.prefix_tokens], active[:, self.prefix_tokens :]
        grid = mixer(positions_of(patches.reshape(patches.shape[0], *self.grid, -1)))
        return torch.cat([prefix, grid.flatten(2).transpose(1, 2)], 1)


class NoGradient:
    """Runs a block without gradients: entered by a hook before it, left by one after it even where the block fails."""

    def __init__(self) -> None:
        self.before: list[bool] = []

    def enter(self, *_: Any) -> None:
        """Turn gradients off."""
        self.before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def leave(self, *_: Any) -> None:
        """Turn them on again where they were."""
        if self.before:
            torch.set_grad_enabled(self.before.pop())


def attach(
    module: nn.Module, method: str, *, rank: int | None, products: str, injections: str, beta: float, kernel: int | None,
    mixing: Mixing = "default", no_grad: bool, compat: Compat,
) -> Adapted:  # fmt: skip
    """Put a side network beside the blocks of a ViT or a Swin; `kernel` 0 is without mixers, None the published size.

    Raises:
        BackboneError: neither a ViT nor a Swin, or not with the pooling that `compat` asks for.
        ConfigError: blocks that the model does not have, an injection with no product before it, a number out of range.
    """
    trunk = trunk_of(module)
    stages, swin = stages_of(trunk, method), isinstance(trunk, SWIN)
    rank = (4 if swin else 2) if rank is None else rank
    kernel = (5 if swin else 3) if kernel is None else kernel
    check(
        (rank > 0, f"rank must be positive, got {rank}"),
        (kernel >= 0, f"kernel must not be negative, got {kernel}"),
        (0 < beta < math.inf, f"beta must be positive and finite, got {beta}"),
    )
    places = _places(stages, products, injections, compat)
    if compat == "published" and not swin:
        check_poolable(trunk)
    put, side = Injection(module), SideNetwork(stages, places, beta, 0 if swin else prefix_of(trunk))
    _fill(side, stages, places, rank, kernel, mixing, compat)
    put.add(trunk, "dtl", side)
    _hook(put, side, trunk, stages, places, no_grad)
    if compat == "published" and not swin:
        pool_patches_before_the_norm(trunk)
    return put.adapted()


def _places(stages: Sequence[Stage], products: str, injections: str, compat: Compat) -> Places:
    """Return where to read and write; `auto` is the last two stages, and the later half of their blocks."""
    count, last = stages[-1].numbers.stop, stages[-2:]
    first = last[0].first
    read = tuple(range(first, count)) if products == "auto" else tuple(indices(products, count, "products"))
    written = range(first + (count - first) // 2, count)
    into = tuple(written) if injections == "auto" else _named(injections, count)
    early = [
        number for stage in stages for number in stage.numbers
        if number in into and not any(n in read for n in range(stage.first, number + 1))
    ]  # fmt: skip
    within = " of its own stage" if len(stages) > 1 else ""
    check((
        not early,
        f"injections {injections!r} names block {', '.join(map(str, early))}, but no product stands at or before it"
        f"{within} (products: {products}), so there is nothing to inject. Begin products earlier, or injections later",
    ))  # fmt: skip
    if compat == "none":  # what no injection of its stage reads would never learn
        ends = {number: max(set(stage.numbers) & set(into), default=-1) for stage in stages for number in stage.numbers}
        read = tuple(number for number in read if number <= ends[number])
        check((bool(read), "injections none leaves nothing to train: name at least one block, or give --peft none"))
    return Places(products=read, injections=into)


def _named(injections: str, count: int) -> tuple[int, ...]:
    return () if injections == "none" else tuple(indices(injections, count, "injections"))


def _fill(
    side: SideNetwork, stages: Sequence[Stage], places: Places, rank: int, kernel: int, mixing: Mixing, compat: Compat
) -> None:
    for stage in stages:
        for number in sorted({*stage.numbers} & {*places.products}):
            side.products[str(number)] = Product(stage.width, rank)
    widths = {index: stage.width for index, stage in enumerate(stages) if set(stage.numbers) & set(places.injections)}
    if compat == "published" and len(stages) > 1:  # always four, also where some are never used
        widths = {index: stages[0].width * 2**index for index in range(max(4, len(stages)))}
    for index, width in widths.items() if kernel else ():
        side.mixers[str(index)] = Mixer(width, kernel, mixing)


def _hook(
    put: Injection, side: SideNetwork, trunk: Any, stages: Sequence[Stage], places: Places, no_grad: bool
) -> None:
    """Let the blocks tell the side network what they are given, and take what it says."""
    if len(side.mixers) and len(stages) == 1:
        (trunk.conv1 if is_tower(trunk) else trunk.patch_embed).register_forward_hook(side.look)
    first, without = min(places.injections, default=-1), NoGradient()
    for stage in stages:
        stage.blocks[0].register_forward_pre_hook(side.forget)
    for number, block in ((stage.first + i, block) for stage in stages for i, block in enumerate(stage.blocks)):
        if number in places.products:
            put.before(block, partial(side.read, number))
        if no_grad and number <= first:
            block.register_forward_pre_hook(without.enter)
            block.register_forward_hook(without.leave, always_call=True)
        if number in places.injections:
            put.after(block, partial(side.write, number))
    stages[-1].blocks[-1].register_forward_hook(side.forget)
