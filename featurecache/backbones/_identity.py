"""What makes features what they are: everything here changes whenever the features would."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn


def weights_digest(module: nn.Module) -> str:
    """Return a BLAKE2b digest over names, dtypes, shapes and bytes of the state dict, in sorted order."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if not value.is_meta:
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def activations(module: nn.Module) -> list[str]:
    """Return the sorted class names of the activation modules; equal keys can hide another activation."""
    places = (
        "torch.nn.modules.activation", "timm.layers.activations", "timm.layers.quant", "open_clip.transformer.QuickGELU",
    )  # fmt: skip
    kinds = {type(m) for m in module.modules()}
    found = {kind.__name__ for kind in kinds if f"{kind.__module__}.{kind.__name__}".startswith(places)}
    return sorted(found - {"MultiheadAttention"})


def plain(value: Any) -> Any:
    """Return options as JSON would give them back, so that identities compare equal after a trip through a header."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in sorted(value.items())}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
