"""Parameter names of the published code of ILA, which numbers its modules: the n-th stands after the n-th block that has one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from featurecache.peft._renaming import Pairs, renamed_from, renamed_to

PARTS = (
    ("down", "adapter_down"), ("up", "adapter_up"), ("prefix_conv", "adapter_cls"), ("skip", "ds_conv"),
    ("norm1", "norm1.1"), ("norm1", "norm1"), ("norm3", "norm3.1"), ("norm3", "norm3"),
    ("spatial.conv", "adapter_conv.0"), ("spatial.conv", "adapter_conv"), ("spatial.norm", "adapter_conv.1.0"),
    ("spatial.norm", "adapter_conv.1.1"), ("spatial.point", "adapter_conv.2"),
)  # fmt: skip
"""Part of a module here and there; of two names the first is that of batch norm, or of the convolution with a 1x1 map."""

BETWEEN = {"ila_keep": "ila", "ila_down": "ila_ds"}
SHALLOW: Pairs = (("blocks.{i}.prompts.values", "positional_embedding.prompt"),)
DEEP: Pairs = (("blocks.{i}.prompts.values", "encoder.prompt"), ("blocks.{i}.queries.values", "encoder.prompt"))
"""Prompts of VPT and VQT, which the same code has as tables."""
INSIDE = {"ila_attention": "adapter_attn", "ila_mlp": "adapter_pwffn"}


def parts_there(name: str) -> list[str]:
    """Return the names that a tensor of a module may have in the published code."""
    part, _, value = name.rpartition(".")
    return [f"{there}.{value}" for here, there in PARTS if here == part]


def ours(state: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
    """Return the values of a published state by the names they have in a model with the method."""
    found: dict[str, Tensor] = {}
    for name in kept:
        known = [there for there in (name, *names_there(name, kept)) if there in state]
        if known:
            found[name] = state[known[0]]
        elif name.endswith("num_batches_tracked"):  # says nothing where momentum is fixed
            found[name] = torch.tensor(0)
    return {**found, **renamed_from(state, _tabled(kept), (), (*SHALLOW, *DEEP))}


def theirs(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values by their published names."""
    tabled = {name: values[name] for name in _tabled(values)}
    rows = renamed_to(tabled, (), SHALLOW if [name.endswith("prompts.values") for name in tabled] == [True] else DEEP)
    return {**{_as_made(name, values): value for name, value in values.items() if name not in tabled}, **rows}


def _tabled(names: Collection[str]) -> list[str]:
    return [name for name in names if name.endswith((".prompts.values", ".queries.values"))]


def names_there(name: str, kept: Collection[str]) -> list[str]:
    """Return the names that a tensor of a model may have in the published code."""
    if name == "cls_token":
        return ["class_token"]
    between = re.fullmatch(r"blocks\.(\d+)\.(ila_keep|ila_down)\.(.+)", name)
    if between:
        blocks = sorted({int(found[1]) for own in kept if (found := re.match(rf"blocks\.(\d+)\.{between[2]}\.", own))})
        start = f"encoder.{BETWEEN[between[2]]}.{blocks.index(int(between[1]))}."
        return [start + there for there in parts_there(between[3])]
    inside = re.fullmatch(r"(blocks\.\d+)\.(ila_attention|ila_mlp)\.(.+)", name)
    return [f"encoder.{inside[1]}.{INSIDE[inside[2]]}.adapter_{inside[3]}"] if inside else []


def _as_made(name: str, values: Mapping[str, Tensor]) -> str:
    """Return the one published name of a tensor whose module is known."""
    found = names_there(name, values)
    if len(found) < 2:
        return found[0] if found else name
    module, _, _ = name.rpartition(".")
    first = f"{module}.running_mean" in values if "norm" in module else f"{module[:-4]}point.weight" in values
    return found[0] if first else found[1]
