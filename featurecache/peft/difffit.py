"""Biases, layer norms, and a factor for each channel of each residual branch learn; it can be folded in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featurecache.peft import Adapted
from featurecache.peft._blocks import transformer_of
from featurecache.peft._injection import Injection, Part
from featurecache.peft._module import biases, norms

PAPER = "Xie et al., DiffFit: Unlocking Transferability of Large Diffusion Models, ICCV 2023, https://arxiv.org/abs/2304.06648"
LEARNING_RATE = 1e-3


class Factor(Part):
    """A number for each channel of a branch, 1 at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def multiplied(self, given: Tensor, found: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return found * self.weight


def apply(module: nn.Module) -> Adapted:
    """Train biases, layer norms, and factors just before branches are added to the stream.

    Raises:
        BackboneError: the module is no vision transformer.
    """
    vit = transformer_of(module, "difffit")
    put, pairs = Injection(module), []
    for block in vit.blocks:
        for name, branch in zip(("attention_factor", "mlp_factor"), block.branches, strict=True):
            part = put.add(block.module, name, Factor(vit.width))
            put.after(branch.drop, part.multiplied)
            pairs.append((branch.last, part))

    def fold() -> None:
        for last, part in pairs:
            last.weight.mul_(part.weight[:, None])
            if last.bias is not None:
                last.bias.mul_(part.weight)

    return put.adapted(also=[*biases(module), *norms(module)], fold=fold, line=True)
