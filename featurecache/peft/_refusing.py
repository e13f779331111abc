"""Which methods a module could take: told to who asked for one that it cannot."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from featurecache.errors import FeatureCacheError
from featurecache.peft import PEFT


def methods_for(module: nn.Module) -> list[str]:
    """Return the names of the methods that go into the module with their default options; it is not changed."""
    return [name for name in PEFT.names() if _goes_in(name, module)]


def _goes_in(name: str, module: nn.Module) -> bool:
    values: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in module.parameters()}
    values |= {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    with torch.random.fork_rng(devices=[]):
        try:
            PEFT.load(name).apply(copy.deepcopy(module, values))
        except FeatureCacheError:
            return False
    return True
