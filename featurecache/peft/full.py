"""Full fine-tuning: every parameter of the backbone is trained, deep layers faster than shallow ones if asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.models import group_parameters
from torch import nn

from featurecache.checks import check
from featurecache.errors import BackboneError
from featurecache.peft import Adapted
from featurecache.peft._line import Line
from featurecache.peft._module import classifier_names, image_side, untouched

LEARNING_RATE = 5e-5


def apply(module: nn.Module, *, layer_decay: float = 1.0) -> Adapted:
    """Train every parameter that a feature passes through; not the module's own classifier, nor the text side of CLIP.

    Each layer learns at `layer_decay` times the rate of the one above it.

    Raises:
        BackboneError: `layer_decay` was asked for, and the module does not say which layer a parameter belongs to.
    """
    check((0 < layer_decay <= 1, f"layer_decay must lie in (0, 1], got {layer_decay}"))
    (sees, prefix), base = image_side(module), untouched(module)
    without = classifier_names(sees)
    factors = _factors(sees, layer_decay)
    trainable = {prefix + name: factors.get(name, 1.0) for name, _ in sees.named_parameters() if name not in without}
    if not trainable:
        raise BackboneError(f"{type(module).__name__} has no parameters to train. Give --peft none.")
    parameters = dict(module.named_parameters())
    for name in trainable:
        parameters[name].requires_grad_(True)
    buffers = {name for name, _ in module.named_buffers()} & module.state_dict().keys()
    kept = (*trainable, *sorted(name for name in buffers if name.startswith(prefix)))

    def train(mode: bool) -> None:
        sees.train(mode)

    return replace(base, trainable=trainable, kept=kept, train=train, scale=Line(module, kept).scale)


def _factors(module: Any, decay: float) -> dict[str, float]:
    if decay == 1:
        return {}
    if not callable(getattr(module, "group_matcher", None)):
        raise BackboneError(
            f"{type(module).__name__} does not say which layer a parameter belongs to, as timm's models do, so "
            "layer_decay cannot be had. Leave it out."
        )
    layers = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}
