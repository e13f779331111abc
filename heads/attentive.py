"""Attentive probe: learned queries look over the tokens of the last layer, then one affine map.

    o_{q,h} = softmax_t(q_{q,h} . k_{t,h} / sqrt(E / H)) V_{t,h},  k = W_K x,  V = W_V x + b_V,
    logits = W [o_1; ...; o_Q] + b          for Q queries, H heads and width E.
A token is a row's vector at one place; an array of vectors counts as one token more. Features are standardised with one
mean and deviation for all places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.checks import check
from heads import HeadSpec
from heads._inputs import Inputs
from heads._outputs import Outputs

PAPER = "Context Autoencoder for Self-Supervised Representation Learning (2022)"
CONSUMES = "tokens"
LEARNING_RATE = 1e-3


class Attentive(nn.Module):
    """Multi-head attention of Q learned queries over T tokens."""

    def __init__(self, spec: HeadSpec, queries: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.inputs = Inputs(spec, tokens=True)
        self.heads, self.dropout = heads, dropout
        self.queries = nn.Parameter(torch.empty(queries, width))
        nn.init.normal_(self.queries, std=0.02)  # near-uniform attention at the start, different for every query
        self.key = nn.Linear(self.inputs.widths[0], width, bias=False)  # one would shift all scores of a query alike
        self.value = nn.Linear(self.inputs.widths[0], width)
        self.map = nn.Linear(queries * width, spec.num_classes)
        self.outputs = Outputs(spec)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, T, D) or (B, D) -> (B, C) logits."""
        tokens = self._tokens(arrays)
        pooled = torch.einsum("bhqt,bhte->bqhe", self._weights(tokens), self._split(self.value(tokens)))
        logits: Tensor = self.outputs(self.map(F.dropout(pooled.flatten(1), self.dropout, self.training)))
        return logits

    def attention(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, T, D) or (B, D) -> (B, H, Q, T) weights of the tokens, which sum to one over T."""
        return self._weights(self._tokens(arrays))

    def _tokens(self, arrays: Mapping[str, Tensor]) -> Tensor:
        values = [x[:, None] if x.ndim == 2 else x for x in self.inputs(arrays)]
        return torch.cat(values, dim=1)

    def _weights(self, tokens: Tensor) -> Tensor:
        queries = self.queries.reshape(len(self.queries), self.heads, -1)
        scores = torch.einsum("qhe,bhte->bhqt", queries, self._split(self.key(tokens)))
        return (scores / math.sqrt(queries.shape[-1])).softmax(dim=-1)

    def _split(self, values: Tensor) -> Tensor:
        """(B, T, E) -> (B, H, T, E / H)."""
        return values.reshape(*values.shape[:-1], self.heads, -1).transpose(1, 2)


def build(spec: HeadSpec, *, queries: int = 1, heads: int = 8, width: int = 256, dropout: float = 0.0) -> Attentive:
    """Return an attentive probe; `width` is E, which `heads` divide, `dropout` the share of pooled features a step drops.

    Raises:
        ConfigError: lists every option out of range, and arrays whose tokens cannot stand side by side.
    """
    widths = {shape[-1] for shape in spec.shapes.values()}
    said = ", ".join(f"{name} {shape[-1]}" for name, shape in spec.shapes.items())
    check(
        (queries > 0, f"queries must be positive, got {queries}"),
        (heads > 0, f"heads must be positive, got {heads}"),
        (width > 0 and width % max(heads, 1) == 0, f"width must be a multiple of heads {heads}, got {width}"),
        (0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}"),
        (spec.combine == "concat", "attentive looks at every token by itself: --layers mean does not apply"),
        (len(widths) == 1, f"attentive reads tokens of one width, got {said}. Give one layer with --layers"),
    )
    return Attentive(spec, queries, heads, width, dropout)
