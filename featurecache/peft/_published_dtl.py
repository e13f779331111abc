<<<<<<< HEAD
"""Parameter names of DTL's published code."""

from __future__ import annotations

import re
=======
"""Parameter names of the published code of DTL."""

from __future__ import annotations

>>>>>>> side
from collections.abc import Collection, Mapping

from torch import Tensor

<<<<<<< HEAD
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
=======
from featurecache.peft._renaming import renamed_from, renamed_to

PRODUCTS = (
    ("dtl.products.{i}.down.weight", "lora_dict.{i}.lora_A"),
    ("dtl.products.{i}.up.weight", "lora_dict.{i}.lora_B"),
)
OF_A_VIT = (*PRODUCTS, ("dtl.mixers.0.weight", "lora_fusion.weight"))
OF_A_SWIN = (*PRODUCTS, ("dtl.mixers.{i}.weight", "lora_fusions.{i}.weight"))
"""A ViT has one convolution, a Swin one for each stage."""


def ours(state: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
    """Return the values of a published state by the names they have in a model with the method."""
    return renamed_from(state, kept, OF_A_VIT if "lora_fusion.weight" in state else OF_A_SWIN, ())


def theirs(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values by their published names."""
    mixers = [name for name in values if name.startswith("dtl.mixers.")]
    return renamed_to(values, OF_A_VIT if mixers == ["dtl.mixers.0.weight"] else OF_A_SWIN, ())
>>>>>>> side
