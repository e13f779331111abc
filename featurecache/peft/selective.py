"""Some blocks of the backbone learn whole, or their attention, their perceptron, or one linear map of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

from featurecache.peft import Adapted
from featurecache.peft._blocks import Block, transformer_of
from featurecache.peft._injection import Injection
from featurecache.peft._multihead import Joint
from featurecache.peft._ranges import indices

PAPER = "the baselines of Mai et al., Lessons and Insights from a Unifying Study of PEFT, CVPR 2025, https://arxiv.org/abs/2409.16434"
LEARNING_RATE = 1e-4


def apply(
    module: nn.Module, *, blocks: str = "last",
    part: Literal["block", "attention", "qkv", "proj", "mlp", "fc1", "fc2"] = "block",
) -> Adapted:  # fmt: skip
    """Train `part` of the blocks with these indices, such as last, 0,3 or 8-11; an index means one block alone.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    vit = transformer_of(module, "selective")
    chosen = [vit.blocks[index] for index in indices(blocks, len(vit.blocks), "blocks")]
    learning = {id(p) for block in chosen for p in _part(block, part)}
    names = [name for name, p in module.named_parameters() if id(p) in learning]
    return Injection(module).adapted(also=names, fold=lambda: None, line=True)


def _part(block: Block, part: str) -> Iterator[nn.Parameter]:
    if part == "block":
        return block.module.parameters()
    branch = block.attention if part in ("attention", "qkv", "proj") else block.mlp
    chosen = {"qkv": branch.first, "fc1": branch.first, "proj": branch.last, "fc2": branch.last}.get(part, branch.core)
    if isinstance(chosen, Joint):  # its parameters are those of its attention
        return iter([p for p in (chosen.weight, chosen.bias) if p is not None])
    found: Iterator[nn.Parameter] = chosen.parameters()
    return found
