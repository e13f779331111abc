"""What methods ask of the module that they change: its pooled vector, its width, its tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from featurecache.peft import Adapted


def image_side(module: nn.Module) -> tuple[nn.Module, str]:
    """Return (what sees images, prefix of its names): the whole module, but of a CLIP model its image tower."""
    visual = getattr(module, "visual", None)
    return (visual, "visual.") if isinstance(visual, nn.Module) else (module, "")


def embed(module: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, D) pooled vector before the classifier; of nets without timm's interface, their output."""
    sees: Any = image_side(module)[0]
    if callable(getattr(sees, "forward_features", None)) and callable(getattr(sees, "forward_head", None)):
        pooled: Tensor = sees.forward_head(sees.forward_features(images), pre_logits=True)
        return pooled.flatten(1)
    found: Tensor = sees(images)
    return found


def width_of(module: nn.Module) -> int:
    """Return D of `embed`, as the module says it, or 0."""
    sees = image_side(module)[0]
    said = (getattr(sees, name, None) for name in ("head_hidden_size", "num_features"))
    return next((int(value) for value in said if isinstance(value, int)), 0)


def tokens_per_layer(module: nn.Module) -> tuple[int, ...]:
    """Return how many tokens each block of a plain transformer or mixer is given, () for other nets."""
    patches = getattr(getattr(module, "patch_embed", None), "num_patches", None)
    blocks = getattr(module, "blocks", None)
    if not isinstance(patches, int) or not isinstance(blocks, (nn.Sequential, nn.ModuleList)):
        return ()
    return (patches + int(getattr(module, "num_prefix_tokens", 0) or 0),) * len(blocks)


def classifier_names(module: nn.Module) -> set[str]:
    """Return the names of the parameters of the module's own classifier, which no feature passes through."""
    get = getattr(module, "get_classifier", None)
    found = get() if callable(get) else None
    parts = found if isinstance(found, (tuple, list)) else (found,)
    inside = {id(p) for part in parts if isinstance(part, nn.Module) for p in part.parameters()}
    return {name for name, p in module.named_parameters() if id(p) in inside}


def untouched(module: nn.Module) -> Adapted:
    """Return a frozen module as it is: what a method starts from, and what the linear baseline stays with."""
    module.eval().requires_grad_(False)
    return Adapted(
        module=module, trainable={}, kept=(), embed=partial(embed, module), dim=width_of(module),
        tokens_per_layer=tokens_per_layer(module), train=lambda mode: None, scale=lambda alpha: None,
        merge=lambda: None,
    )  # fmt: skip


def biases(module: nn.Module) -> list[str]:
    """Return the names of the biases that a feature passes through."""
    return [name for name in passed(module) if name.rpartition(".")[2].endswith("bias")]


def norms(module: nn.Module) -> list[str]:
    """Return the names of the parameters of layer norms that a feature passes through."""
    owners = {name for name, part in module.named_modules() if type(part).__name__.startswith(("LayerNorm", "RmsNorm"))}
    return [name for name in passed(module) if name.rpartition(".")[0] in owners]


def passed(module: nn.Module) -> list[str]:
    """Return the names of the parameters that a feature passes through: not a classifier's, nor of CLIP's text side."""
    sees, prefix = image_side(module)
    without = classifier_names(sees)
    return [prefix + name for name, _ in sees.named_parameters() if name not in without]
