"""Frozen models: images in, the features of every layer out.

A file of this room answers `build(model_id, *, options) -> Backbone`; users name it `SOURCE:MODEL_ID`, for example
`timm:vit_tiny_patch16_224`, `open_clip:ViT-B-32/openai`, `demo`, or `python:package.module:function`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from featurecache.errors import UnknownNameError
from featurecache.features import Layer
from featurecache.registry import Registry, nearest

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

log = logging.getLogger("featurecache")

BACKBONES = Registry("backbone source", "featurecache.backbones")

Precision = Literal["fp32", "bf16", "fp16", "tf32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneOptions:
    """How a backbone is to be built; the same names on the command line, in YAML and here."""

    weights: str | None = None
    """A file (.safetensors, or a .pth/.pt/.bin state dict), or "random:SEED"; None takes the weights that the name stands for."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the architecture, e.g. {"pad_type": "same"}."""
    transform: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the preprocessing: mean, std, size, crop, interpolation."""
    image_size: int | None = None
    """Side of the input in pixels; None takes the model's own."""
    norm: Literal["final", "none"] = "final"
    """Whether layers of the final width pass through the model's final norm."""
    precision: Precision = "fp32"
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Request:
    """Which features one forward pass is to give."""

    layers: tuple[int, ...] = ()
    """Layer indices, ascending."""
    tokens: tuple[str, ...] = ()
    """Kinds: "cls", "mean", "patch-grid:K", "all", "register"; one set of arrays each."""
    embedding: bool = True
    logits: bool = False
    projected: bool = False
    """The embedding in the space that image and text share, not L2-normalised; of CLIP's kind only."""


class TextTower(Protocol):
    """The text side of a model whose images and texts share a space."""

    def space(self) -> dict[str, Tensor]:
        """Return what brings both sides into their space, as far as it is linear, on the CPU, in float32.

        "text/image_projection" (1, D, E) and "text/projection" (1, Dt, E), which vectors are multiplied by from the left,
        and "text/logit_scale" (1, 1, 1), the logarithm of what cosines are multiplied by.
        """

    def templates(self, words: str) -> tuple[str, ...]:
        """Return the templates that a name, a file with one on each line, or a text with {} stands for.

        Raises:
            ConfigError: it is none of these.
        """

    def features(self, class_names: Sequence[str], templates: Sequence[str]) -> dict[str, Tensor]:
        """Return what the tower says of every class name in every template: C classes, P templates, L layers.

        "text/eot" is (L, C, P, Dt), each layer at the end token; "text/embedding" is (C, P, E), projected and not
        L2-normalised. Both on the CPU, in float32.

        Raises:
            ConfigError: no class names, or templates without their {}.
            BackboneError: the tokenizer cannot be had, or is not of this model.
        """


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Backbone:
    """A frozen feature extractor, with what is needed to call it and to recognise its features later."""

    name: str
    """Resolved name, e.g. "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"."""
    module: nn.Module
    """In eval mode, without gradients, on `device`."""
    transform: Callable[[Image], Tensor]
    """RGB image -> (3, H, W) float32."""
    input_size: tuple[int, int, int]
    """(3, H, W)."""
    dim: int
    """D of the embedding (pooled, pre-logits)."""
    layers: tuple[Layer, ...]
    """Every layer that the model has."""
    tokens: tuple[str, ...]
    """Kinds of token it can give; the first is what `auto` means."""
    forward: Callable[[Tensor, Request], dict[str, Tensor]]
    """(B, 3, H, W) on `device` and a request -> arrays by store name, (B, D) each; see `Request`."""
    num_logits: int
    """Classes of the model's own head; 0 where it has none."""
    device: torch.device
    identity: Mapping[str, Any]
    """Changes whenever the features would: name, architecture, activation, weights digest, transform, norm, precision."""
    origin: Mapping[str, Any]
    """What `load_backbone` needs to build it again; recorded, never compared."""
    projected_dim: int = 0
    """E of the space that image and text share; 0 where there is none."""
    text: TextTower | None = None
    learn: Callable[[Tensor, Request], dict[str, Tensor]] | None = None
    """As `forward`, in the caller's gradient mode and the module's training mode; None: its values cannot be trained."""


class BuildBackbone(Protocol):
    """What `build` in every file of this room must accept."""

    def __call__(self, model_id: str, *, options: BackboneOptions) -> Backbone:
        """Build the model.

        Raises:
            UnknownNameError: no such model; names the nearest.
            WeightsError: the weights are missing, unsafe, or of another architecture.
            BackboneError, ConfigError: an option that this model cannot take.
        """


def load_backbone(name: str, options: BackboneOptions | None = None) -> Backbone:
    """Build the backbone called `SOURCE:MODEL_ID`; a bare timm model name, and `hf-hub:...`, go to timm.

    Raises:
        UnknownNameError, WeightsError, BackboneError, ConfigError, DeviceError.
    """
    log.info("loading the backbone %s", name)
    source, colon, model_id = name.partition(":")
    is_bare = not colon and source.replace("-", "_") not in BACKBONES.names()
    if source in ("hf-hub", "hf_hub") and not model_id.startswith("timm/"):
        _refuse_foreign(model_id)
    if is_bare or source in ("hf-hub", "hf_hub", "local-dir"):
        source, model_id = "timm", name
    try:
        built: Backbone = BACKBONES.load(source).build(model_id, options=options or BackboneOptions())
    except UnknownNameError as error:
        _refuse_foreign(name)
        meant = nearest(name, BACKBONES.names()) if is_bare else ""
        if is_bare and "/" in name:
            meant += (
                f" A repository of Hugging Face's hub is read as hf-hub:{name} where its files are timm's; of models in the form "
                "of transformers, the same weights have a name in timm or open_clip."
            )
        raise UnknownNameError(f"{error}{meant}") from None
    return built


def _refuse_foreign(name: str) -> None:
    """Refuse what the model is called elsewhere, with its name here.

    Raises:
        UnknownNameError: it is such a name.
    """
    from featurecache.backbones._hub_names import describe_foreign

    meant = describe_foreign(name)
    if meant:
        raise UnknownNameError(f"there is no backbone {name!r}: {meant}") from None
