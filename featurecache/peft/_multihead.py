"""torch's own multi-head attention, opened: its joint map to queries, keys and values becomes a part that can be hooked."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Joint(nn.Module):
    """The map to queries, keys and values of an attention, as a part without parameters of its own."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self._of = (attention,)  # in a tuple: a child that knows its parent must not be found as one

    @property
    def weight(self) -> nn.Parameter:
        """(3D, D)."""
        found: Any = self._of[0].in_proj_weight
        return found  # type: ignore[no-any-return]

    @property
    def bias(self) -> nn.Parameter | None:
        """(3D,)."""
        found: Any = self._of[0].in_proj_bias
        return found  # type: ignore[no-any-return]

    @property
    def in_features(self) -> int:
        """Return D."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """Return 3D."""
        return int(self.weight.shape[0])

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, 3D)."""
        return F.linear(tokens, self.weight, self.bias)


def opened(attention: nn.MultiheadAttention) -> nn.MultiheadAttention:
    """Return the attention, which from now on calls its parts `qkv` and `out_proj`; no key of its state changes."""
    if not hasattr(attention, "qkv"):
        attention.qkv = Joint(attention)
        attention.forward = MethodType(_forward, attention)  # type: ignore[method-assign]
    return attention


def _forward(self: Any, query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> tuple[Tensor, None]:
    """Attend as `nn.MultiheadAttention` does to tokens among themselves, without returning weights."""
    mask = settings.get("attn_mask")
    tokens = query if self.batch_first else query.transpose(0, 1)
    parts = self.qkv(tokens).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
    dropout = self.dropout if self.training else 0.0
    query, key, value = parts.unbind(0)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    found = self.out_proj(found.transpose(1, 2).flatten(2))
    return (found if self.batch_first else found.transpose(0, 1)), None
