"""Learned queries ask the frozen tokens of every block, change none of them, and speak to the head.

The stream is that of the backbone to the bit, so no gradient passes through it and its activations are not kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import BackboneError
from featurecache.peft import Adapted
from featurecache.peft._blocks import Block, Transformer, positioned, transformer_of
from featurecache.peft._injection import Held, Injection, Part
from featurecache.peft._prompts import class_token_in, uniform
from featurecache.peft._start import Compat

PAPER = "Tu et al., Visual Query Tuning: Towards Effective Usage of Intermediate Representations, CVPR 2023, https://arxiv.org/abs/2212.03220"
LEARNING_RATE = 1e-3
STARTS_AS_BACKBONE = False


class Queries(Part):
    """(n, D) values that go through one block as queries alone: keys and values are those of the block's own tokens."""

    def __init__(self, vit: Transformer, block: Block, count: int, dropout: float) -> None:
        super().__init__()
        self.values, self.dropout = uniform(vit, count, vit.width), nn.Dropout(dropout)
        self.block = (block,)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) tokens that the block is given -> (B, n, D) queries behind it."""
        attention, mlp = self.block[0].branches
        # a sum and no view: torch's counter of operations takes a view of a parameter for a result that has a gradient
        found = self.dropout(self.values) + tokens.new_zeros(tokens.shape[0], 1, 1)
        found = found + attention.ended(self._asked(attention.norm(found), attention.norm(tokens)))
        gone: Tensor = found + mlp.ended(mlp.core(mlp.norm(found)))
        return gone

    def _asked(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(B, n, D), (B, T, D), both after the norm -> (B, n, D)."""
        branch, core = self.block[0].attention, self.block[0].attention.core
        width, bias = branch.last.in_features, branch.first.bias
        parts = branch.first.weight.split([width, 2 * width])
        biases = (None, None) if bias is None else bias.split([width, 2 * width])
        query = self._heads(F.linear(queries, parts[0], biases[0]))
        key, value = (self._heads(part) for part in F.linear(tokens, parts[1], biases[1]).chunk(2, -1))
        found = _attended(core, core.q_norm(query), core.k_norm(key), value)
        found = found.transpose(1, 2).flatten(2)
        gone: Tensor = core.proj_drop(branch.last(getattr(core, "norm", nn.Identity())(found)))
        return gone

    def _heads(self, values: Tensor) -> Tensor:
        core: Any = self.block[0].attention.core
        return values.reshape(*values.shape[:2], core.num_heads, -1).transpose(1, 2)


def _attended(core: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, H, n, d) from (B, H, n, d) and (B, H, T, d), in the attention's own arithmetic."""
    if core.fused_attn:
        return F.scaled_dot_product_attention(query, key, value)
    weights = core.attn_drop((query * core.scale @ key.transpose(-2, -1)).softmax(-1))
    found: Tensor = weights @ value
    return found


class Answers(Part):
    """What the head reads: the outputs of the queries of all blocks, then the pooled vector; each of length 1."""

    def __init__(self, queries: list[Queries]) -> None:
        super().__init__()
        self.queries, self.held = tuple(queries), Held()  # in a tuple: they belong to their blocks

    def begin(self, tokens: Tensor) -> Tensor:
        """Forget a pass that did not come to its end."""
        self.held.put([])
        return tokens

    def collect(self, number: int, given: Tensor, found: Tensor) -> Tensor:
        """Let the queries of a block ask what it was given."""
        self.keep(self.queries[number](given))
        return found

    def keep(self, values: Tensor) -> None:
        """Keep (B, n, D) until the end of the pass."""
        self.held.put([*(self.held.take() or []), values])

    def speak(self, given: Tensor, pooled: Tensor) -> Tensor:
        """(B, D) -> (B, L * n * D + D)."""
        asked = [F.normalize(values.flatten(1), dim=-1) * self.strength for values in self.held.take()]
        return torch.cat([*asked, pooled.lerp(F.normalize(pooled, dim=-1), self.strength)], -1)

    def own(self, pooled: Tensor) -> Tensor:
        """Give the model's own classifier the pooled vector alone, which it knows."""
        return pooled[..., -self.queries[0].values.shape[-1] :]


class Mixed(Answers):
    """What the published code has instead: first tokens of every block, normed over tokens, mixed to one; no query is heard."""

    def __init__(self, queries: list[Queries]) -> None:
        super().__init__(queries)
        count = len(queries) * len(queries[0].values) + 1
        self.mix = nn.Linear(count, 1, bias=False)
        nn.init.trunc_normal_(self.mix.weight, std=0.02, a=-2.0, b=2.0)

    def collect(self, number: int, given: Tensor, found: Tensor) -> Tensor:
        """Keep as many tokens as there are queries, from the begin of what the block gives."""
        self.keep(found[:, : len(self.queries[number].values)])
        return found

    def speak(self, given: Tensor, pooled: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        tokens = [F.normalize(values, dim=1) for values in (*self.held.take(), pooled[:, None])]
        mixed: Tensor = self.mix(torch.cat(tokens, 1).transpose(1, 2))[..., 0]
        return pooled.lerp(mixed, self.strength)


def apply(
    module: nn.Module, *, queries: int = 1, dropout: float = 0.1, class_token: bool = False, compat: Compat = "none"
) -> Adapted:
    """Add queries to every block; the pooled vector gets all their outputs in front and is wider by as much.

    `class_token` lets the class token learn too, and gradients pass the stream. compat=osu is what the published code does:
    the queries are cut off before they are recorded, so that only its mixing of frozen tokens learns.

    Raises:
        BackboneError: the module is no vision transformer of timm, or its attention knows positions.
    """
    vit = positioned(transformer_of(module, "vqt"), "vqt")
    _check_takes(vit)
    check(
        (1 <= queries <= vit.tokens, f"queries must lie in 1..{vit.tokens}, the tokens of a block, got {queries}"),
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
    )
    put = Injection(module)
    asking = [put.add(b.module, "queries", Queries(vit, b, queries, dropout)) for b in vit.blocks]
    answers = put.add(vit.body, "answers", Mixed(asking) if compat == "osu" else Answers(asking))
    put.before(vit.blocks[0].module, answers.begin)
    for number, block in enumerate(vit.blocks):
        put.after(block.module, partial(answers.collect, number))
    put.after(vit.body.fc_norm, answers.speak)
    wider = 0 if compat == "osu" else queries * vit.width * len(vit.blocks)
    if wider:
        put.before(vit.body.head, answers.own)
    return put.adapted(also=class_token_in(vit, module, class_token), dim=put.base.dim + wider, wider=wider)


def _check_takes(vit: Transformer) -> None:
    """Refuse a model whose attention or pooling has another form than timm's plain one."""
    cores = [block.attention.core for block in vit.blocks]
    plain = all(hasattr(core, name) for core in cores for name in ("q_norm", "k_norm", "fused_attn", "proj_drop"))
    if not plain or any(getattr(core, "gate", None) is not None for core in cores) or not hasattr(vit.body, "fc_norm"):
        raise BackboneError(
            f"{type(vit.body).__name__} cannot take the method vqt: its attention or pooling is not that of timm's ViT."
        )
