"""Learned prompt tokens of their own for every block."""

from __future__ import annotations

from torch import nn

from featurecache.checks import check
from featurecache.peft import Adapted
from featurecache.peft._blocks import positioned, transformer_of
from featurecache.peft._injection import Injection
from featurecache.peft._prompts import Prompts, class_token_in
from featurecache.peft._ranges import indices
from featurecache.peft._start import Compat

PAPER = "Jia et al., Visual Prompt Tuning, ECCV 2022, https://arxiv.org/abs/2203.12119"
LEARNING_RATE = 1e-3
STARTS_AS_BACKBONE = False


def apply(
    module: nn.Module, *, prompts: int = 10, blocks: str = "all", dropout: float = 0.0, class_token: bool = False,
    compat: Compat = "none",
) -> Adapted:  # fmt: skip
    """Add fresh prompts to what each of `blocks` is given, all or such as 6-11, and take them out of what it gives.

    `class_token` lets the class token learn too. The papers have dropout=0.1; its one draw for a batch moves all images alike,
    which few steps do not average. compat=osu puts prompts before it, which changes nothing but their place.

    Raises:
        BackboneError: the module is no vision transformer, or its attention knows positions.
    """
    vit = positioned(transformer_of(module, "vpt_deep"), "vpt_deep")
    check(
        (prompts >= 1, f"prompts must be positive, got {prompts}"),
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
    )
    put, chosen = Injection(module), indices(blocks, len(vit.blocks), "blocks")
    for block in (vit.blocks[index] for index in chosen):
        at = vit.prefix if compat == "none" else 0
        part = put.add(block.module, "prompts", Prompts(vit, prompts, dropout, at))
        put.before(block.module, part.join)
        put.after(block.module, part.passing.leave)
        put.mask(block.attention.core, part.passing.mask)
    tokens = tuple(vit.tokens + prompts * (number in chosen) for number in range(len(vit.blocks)))
    return put.adapted(also=class_token_in(vit, module, class_token), tokens_per_layer=tokens)
