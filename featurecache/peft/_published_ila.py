"""Parameter names of ILA's published code."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from featurecache.peft._renaming import Pairs, renamed_from, renamed_to

WITHIN = {
    "adapter_down": "down", "adapter_up": "up", "adapter_cls": "prefix_conv", "ds_conv": "skip",
    "norm1": "norm1", "norm1.1": "norm1", "norm3": "norm3", "norm3.1": "norm3",
    "adapter_conv": "spatial.conv", "adapter_conv.0": "spatial.conv", "adapter_conv.1.0": "spatial.norm",
    "adapter_conv.1.1": "spatial.norm", "adapter_conv.2": "spatial.point",
}  # fmt: skip
"""Part of a module in the published code -> part of ours; of the two names of a norm one is batch norm's, one layer norm's."""

BETWEEN = {"ila": "ila_keep", "ila_ds": "ila_down"}
IN_BLOCK = {"adapter_attn": "ila_attention", "adapter_pwffn": "ila_mlp"}
TOKENS = {"class_token": "cls_token"}

SHALLOW: Pairs = (("blocks.{i}.prompts.values", "positional_embedding.prompt"),)
DEEP: Pairs = (("blocks.{i}.prompts.values", "encoder.prompt"), ("blocks.{i}.queries.values", "encoder.prompt"))
"""Tables of the prompts of VPT and VQT in the same code: (ours, theirs)."""


def ours_within(name: str) -> str | None:
    """Return the name that a tensor of a published module has in ours; None where ours has no such part."""
    part, _, kind = name.rpartition(".")
    return f"{WITHIN[part]}.{kind}" if part in WITHIN else None


def ours_of_ila(state: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
    """Return a published state by the names it has in a model with the method, whose kept names are given.

    The published code numbers its modules; the n-th stands after the n-th block that has one here. What belongs to no
    module, such as the backbone's own parameters, is left out.
    """
    found = {}
    for name, value in state.items():
        ours = name if name in kept else _ours(name.removeprefix("encoder."), kept)
        if ours is not None:
            found[ours] = value
    return found


def _ours(name: str, kept: Collection[str]) -> str | None:
    start = next((own.partition("blocks.")[0] for own in kept if "blocks." in own), "")
    if name in TOKENS:
        return start + TOKENS[name]
    between = re.fullmatch(r"(ila|ila_ds)\.(\d+)\.(.+)", name)
    if between:
        place, within = BETWEEN[between[1]], ours_within(between[3])
        blocks = _blocks_with(place, kept)
        at = int(between[2])
        return f"{start}blocks.{blocks[at]}.{place}.{within}" if within and at < len(blocks) else None
    inside = re.fullmatch(r"(blocks\.\d+)\.(adapter_attn|adapter_pwffn)\.(adapter_\w+)\.(\w+)", name)
    if inside:
        return f"{start}{inside[1]}.{IN_BLOCK[inside[2]]}.{inside[3].removeprefix('adapter_')}.{inside[4]}"
    return None


def _blocks_with(place: str, kept: Collection[str]) -> list[int]:
    """Return the numbers of the blocks that a module called `place` stands after."""
    return sorted({int(found[1]) for own in kept if (found := re.search(rf"blocks\.(\d+)\.{place}\.", own))})


def ours(state: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
    """Return a published state by the names it has in a module with the method, whose kept names are given."""
    return {**ours_of_ila(state, kept), **renamed_from(state, kept, (), (*SHALLOW, *DEEP))}


def theirs(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values of VPT or VQT in the names of the published code."""
    rows = [name for name in values if name.endswith(".prompts.values")]
    return renamed_to(values, (), SHALLOW if len(rows) == 1 else DEEP)
