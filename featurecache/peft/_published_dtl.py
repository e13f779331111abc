"""Parameter names of DTL's published code."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

NAMES = (
    (r"lora_dict\.(\d+)\.lora_A(?:\.weight)?", r"products.\1.down.weight"),
    (r"lora_dict\.(\d+)\.lora_B(?:\.weight)?", r"products.\1.up.weight"),
    (r"lora_fusion\.weight", r"mixers.0.weight"),
    (r"lora_fusions\.(\d+)\.weight", r"mixers.\1.weight"),
)
"""Published name -> name in the side network."""


def ours_of_dtl(state: Mapping[str, Tensor], prefix: str = "dtl.") -> dict[str, Tensor]:
    """Return the side network's values by the names they have in a module; what is no part of it is left out."""
    found = {}
    for name, value in state.items():
        for theirs, ours in NAMES:
            match = re.fullmatch(theirs, name)
            if match:
                found[prefix + match.expand(ours)] = value
    return found


def ours(state: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
    """Return a published state by the names it has in a module with the method, whose kept names are given."""
    found = ours_of_dtl(state)
    return {name: value for name, value in found.items() if name in kept}
