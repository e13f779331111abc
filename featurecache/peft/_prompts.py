"""Prompt tokens that stand with the tokens of a block while it works, and are gone from its output."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from featurecache.errors import ConfigError
from featurecache.peft._blocks import Transformer
from featurecache.peft._injection import Held, Part


def uniform(vit: Transformer, *shape: int) -> nn.Parameter:
    """Return values as prompts begin with: uniform within sqrt(6 / (numbers of a patch + D))."""
    bound = math.sqrt(6 / (vit.patches.weight[0].numel() + vit.width))
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class Prompts(Part):
    """(n, D) values that join the tokens of one block; dropout draws once for a batch."""

    def __init__(self, vit: Transformer, count: int, dropout: float, at: int) -> None:
        super().__init__()
        self.values, self.dropout = uniform(vit, count, vit.width), nn.Dropout(dropout)
        self.passing = Passing(count, at)

    def join(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T + n, D)."""
        return self.passing.joined(tokens, self.dropout(self.values).expand(tokens.shape[0], -1, -1))


class Passing(Part):
    """How n prompts enter and leave a block: before the token `at`, and out of its output into `kept` for a next block."""

    def __init__(self, count: int, at: int) -> None:
        super().__init__()
        self.count, self.at = count, at
        self.kept: Held | None = None
        self.given: Held | None = None

    def joined(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        """(B, T, D), (B, n, D) -> (B, T + n, D)."""
        return torch.cat([tokens[:, : self.at], prompts, tokens[:, self.at :]], 1)

    def rejoin(self, tokens: Tensor) -> Tensor:
        """Let the prompts that the block before put aside join again."""
        assert self.given is not None
        return self.joined(tokens, self.given.take())

    def leave(self, given: Tensor, found: Tensor) -> Tensor:
        """(B, T + n, D) -> (B, T, D)."""
        end = self.at + self.count
        if self.kept is not None:
            self.kept.put(found[:, self.at : end])
        return torch.cat([found[:, : self.at], found[:, end:]], 1)

    def mask(self, tokens: Tensor) -> Tensor | None:
        """(T + n, T + n) to be added to attention: prompts weigh as much as the strength says; None at full strength."""
        if self.strength == 1:
            return None
        length, end = tokens.shape[1], self.at + self.count
        found = torch.zeros(length, length, dtype=tokens.dtype, device=tokens.device)
        found[:, self.at : end] = math.log(self.strength) if self.strength > 0 else -math.inf
        return found


def class_token_in(vit: Transformer, module: nn.Module, wanted: bool) -> list[str]:
    """Return the name of the class token if it is to learn too.

    Raises:
        ConfigError: it is, and there is none.
    """
    if not wanted:
        return []
    found = [name for name, p in module.named_parameters() if p is vit.class_token]
    if not found:
        raise ConfigError([f"class_token cannot learn: {type(vit.body).__name__} has none"])
    return found
