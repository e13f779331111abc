"""Which methods a module could take: told to who asked for one that it cannot."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from featurecache.errors import FeatureCacheError
from featurecache.peft import PEFT, Adapted


def methods_for(module: nn.Module, *, folded: bool = False) -> list[str]:
    """Return the names of the methods that go into the module with their default options; it is not changed.

    `folded` names only those that train something and can be folded in.
    """
    found = {name: _put_in(name, module) for name in PEFT.names()}
    return [
        name for name, adapted in found.items()
        if adapted is not None and (not folded or (adapted.trainable and adapted.merge is not None))
    ]  # fmt: skip


def _put_in(name: str, module: nn.Module) -> Adapted | None:
    values: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in module.parameters()}
    values |= {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    with torch.random.fork_rng(devices=[]):
        try:
            adapted: Adapted = PEFT.load(name).apply(copy.deepcopy(module, values))
        except FeatureCacheError:
            return None
    return adapted
