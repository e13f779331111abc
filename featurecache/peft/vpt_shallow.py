"""Learned prompt tokens that enter before the first block and stay to the last."""

from __future__ import annotations

from torch import nn

from featurecache.checks import check
from featurecache.peft import Adapted
from featurecache.peft._blocks import positioned, transformer_of
from featurecache.peft._injection import Held, Injection
from featurecache.peft._prompts import Passing, Prompts, class_token_in
from featurecache.peft._start import Compat

PAPER = "Jia et al., Visual Prompt Tuning, ECCV 2022, https://arxiv.org/abs/2203.12119"
LEARNING_RATE = 1e-2
STARTS_AS_BACKBONE = False


def apply(
    module: nn.Module, *, prompts: int = 10, dropout: float = 0.0, class_token: bool = False, compat: Compat = "none"
) -> Adapted:
    """Add prompts, without positions; what a block gives outward has none, the next one takes them up again.

    `class_token` lets the class token learn too. The study has dropout=0.1, drawn once for a batch. compat=osu puts prompts before it, and drops them after the first block.

    Raises:
        BackboneError: the module is no vision transformer, or its attention knows positions.
    """
    vit = positioned(transformer_of(module, "vpt_shallow"), "vpt_shallow")
    check(
        (prompts >= 1, f"prompts must be positive, got {prompts}"),
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
    )
    stays, put = compat == "none", Injection(module)
    at = vit.prefix if stays else 0
    first = put.add(vit.blocks[0].module, "prompts", Prompts(vit, prompts, dropout, at))
    put.before(vit.blocks[0].module, first.join)
    passings: list[Passing] = [first.passing]
    for block in vit.blocks[1:] if stays else ():
        part = put.add(block.module, "prompts", Passing(prompts, at))
        passings[-1].kept = part.given = Held()
        put.before(block.module, part.rejoin)
        passings.append(part)
    for block, passing in zip(vit.blocks, passings, strict=False):
        put.after(block.module, passing.leave)
        put.mask(block.attention.core, passing.mask)
    tokens = tuple(vit.tokens + prompts * (number < len(passings)) for number in range(len(vit.blocks)))
    return put.adapted(also=class_token_in(vit, module, class_token), tokens_per_layer=tokens)
