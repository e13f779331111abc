"""What a pass through a model costs: multiply-adds, and the bytes that autograd keeps of it for the gradient.

Both are counted where they arise, by hooks and by torch's own counter. On the device "meta" nothing is computed, so that
models of any size can be measured without their memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

BLOCK = re.compile(r"(?:.*\.)?(?:blocks|resblocks|layer\d+)\.\d+")
"""Names of blocks: of transformers, of the stages of a Swin or a ConvNeXt, of ResNets."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that autograd keeps of a pass, parameters and buffers of the model not counted; each storage once."""

    blocks: tuple[int, ...]
    """In the order of the model; () where it has no blocks that we know."""
    outside: int
    """Embedding, head, and what stands beside or between the blocks."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.blocks) + self.outside


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model, none inside another."""
    found: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        if BLOCK.fullmatch(name) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = part
    return list(found.values())


def kept_by(module: nn.Module, run: Callable[[], Any]) -> Kept:
    """Return what autograd keeps of `run()`, a pass through the module, for each block.

    What hooks on a block do, as methods that add to it, is counted outside.
    """
    blocks, inside = blocks_of(module), list[int]()
    sizes, seen, alive = [0] * (len(blocks) + 1), set[int](), list[Tensor]()
    own = {_storage(value) for value in (*module.parameters(), *module.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in seen and key not in own:
            seen.add(key)
            sizes[inside[-1] if inside else -1] += tensor.untyped_storage().nbytes()
        alive.append(tensor)  # or its storage's number could be given to another one
        return tensor

    hooks = []
    for number, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(lambda *_, number=number: inside.append(number)))
        hooks.append(block.register_forward_hook(lambda *_: _drop(inside), prepend=True, always_call=True))
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return Kept(tuple(sizes[:-1]), sizes[-1])


def multiply_adds(run: Callable[[], Any]) -> int:
    """Return the multiply-adds of `run()`: matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops()) // 2


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _drop(inside: list[int]) -> None:
    if inside:
        inside.pop()
