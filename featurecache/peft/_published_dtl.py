"""Parameter names of the published code of DTL."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

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
