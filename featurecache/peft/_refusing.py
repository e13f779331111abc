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
    values: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in module.parameters()}
    values |= {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    skeleton = copy.deepcopy(module, values)
    found = {name: _put_in(name, _like(skeleton, {})) for name in PEFT.names()}
    return [
        name for name, adapted in found.items()
        if adapted is not None and (not folded or (adapted.trainable and adapted.merge is not None))
    ]  # fmt: skip


def _put_in(name: str, module: nn.Module) -> Adapted | None:
    with torch.random.fork_rng(devices=[]):
        try:
            adapted: Adapted = PEFT.load(name).apply(module)
        except FeatureCacheError:
            return None
    return adapted


def _like(module: nn.Module, made: dict[int, Any]) -> nn.Module:
    """Return a module with parts, parameters and hooks of its own, and all else shared: a deep copy for each method is dear.

    `made` holds, by id, what has been copied.
    """
    if id(module) in made or isinstance(module, torch.jit.ScriptModule):
        known: nn.Module = made.get(id(module), module)
        return known
    new = made[id(module)] = type(module).__new__(type(module))
    new.__dict__.update({key: own.copy() if isinstance(own, dict) else own for key, own in vars(module).items()})
    for key, parameter in module._parameters.items():
        if parameter is not None:
            new._parameters[key] = made.setdefault(id(parameter), nn.Parameter(parameter.detach()))
    for key, part in module._modules.items():
        new._modules[key] = None if part is None else _like(part, made)
    for key, part in vars(module).items():
        if isinstance(part, nn.Module):  # known by a second name, or kept from the list of parts
            new.__dict__[key] = _like(part, made)
    return new
