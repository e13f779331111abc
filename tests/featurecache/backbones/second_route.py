"""The features of a module with timm's interface, derived again: whole layers at once, as maps, cell by cell."""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn

from featurecache.features import layer_array

Tokens = tuple[Tensor, Tensor | None]
"""(B, D, H, W) map of patches and (B, P, D) class token and registers, where there are any."""


def images_for(backbone, count: int = 2) -> Tensor:
    return torch.randn(count, *backbone.input_size, generator=torch.Generator().manual_seed(7))


def embedding_of(module: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return module.forward_head(module.forward_features(images), pre_logits=True)


def features_of(module: nn.Module, images: Tensor, cells: int) -> dict[str, Tensor]:
    """Return every kind of token of every layer, by array name; the norm only where the width is the final one."""
    layers = [normed(module, *raw) for raw in raw_layers(module, images)]
    return arrays_of(layers, cells, has_class=class_token_of(module) is not None, registers=registers_of(module))


def arrays_of(layers: list[Tokens], cells: int, *, has_class: bool, registers: int) -> dict[str, Tensor]:
    """Return every kind of token by array name, from whole layers after their norm."""
    found = {}
    for index, (patches, prefix) in enumerate(layers):
        sequence = patches.flatten(2).transpose(1, 2)
        found[layer_array("all", index)] = sequence if prefix is None else torch.cat([prefix, sequence], 1)
        found[layer_array("mean", index)] = patches.flatten(2).double().mean(2).float()
        found[layer_array("patch-grid", index)] = cell_means(patches, cells)
        if prefix is not None and has_class:
            found[layer_array("cls", index)] = prefix[:, 0]
        if prefix is not None and registers:
            found[layer_array("register", index)] = prefix[:, prefix.shape[1] - registers :]
    return found


def raw_layers(module: nn.Module, images: Tensor) -> list[Tokens]:
    """Return what timm gives for every layer without norm, as maps."""
    has_prefix = (getattr(module, "num_prefix_tokens", 0) or 0) > 0
    takes_prefix = "return_prefix_tokens" in inspect.signature(module.forward_intermediates).parameters
    extra = {"return_prefix_tokens": True} if has_prefix and takes_prefix else {}
    with torch.no_grad():
        outputs = module.forward_intermediates(images, norm=False, intermediates_only=True, output_fmt="NCHW", **extra)
    return [output if extra else (output, None) for output in outputs]


def class_token_of(module: nn.Module) -> Tensor | None:
    return getattr(module, "cls_token", None)


def registers_of(module: nn.Module) -> int:
    registers = getattr(module, "reg_token", None)
    return 0 if registers is None else registers.shape[1]


def normed(module: nn.Module, patches: Tensor, prefix: Tensor | None) -> Tokens:
    """Put the whole sequence through the final norm at once, as the model itself does with its last layer."""
    norm = next(
        (n for name in ("norm", "fc_norm") if (n := getattr(module, name, None)) and list(n.parameters())), None
    )
    if norm is None or norm.weight.shape[0] != patches.shape[1]:
        return patches, prefix
    with torch.no_grad():
        if isinstance(norm, (nn.modules.batchnorm._NormBase, nn.GroupNorm)) or type(norm).__name__.endswith("2d"):
            return norm(patches), prefix
        sequence = patches.flatten(2).transpose(1, 2)
        count = 0 if prefix is None else prefix.shape[1]
        sequence = norm(sequence if prefix is None else torch.cat([prefix, sequence], 1))
    return sequence[:, count:].transpose(1, 2).unflatten(2, patches.shape[2:]), sequence[:, :count] if count else None


def cell_means(patches: Tensor, cells: int) -> Tensor:
    """Return (B, cells * cells, D), row major; neighbouring cells overlap where the map is no multiple of `cells`."""

    def spans(length: int) -> list[slice]:
        return [slice(math.floor(i * length / cells), math.ceil((i + 1) * length / cells)) for i in range(cells)]

    height, width = patches.shape[2:]
    return torch.stack([patches[:, :, r, c].mean((2, 3)) for r in spans(height) for c in spans(width)], 1)
