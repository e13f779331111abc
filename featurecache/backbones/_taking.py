"""One forward pass of a frozen module gives what was requested, and runs no further than that needs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featurecache.backbones import BackboneOptions, Request
from featurecache.backbones._arithmetic import arithmetic
from featurecache.backbones._tokens import Prefix, Stream, final_norm, token
from featurecache.errors import BackboneError
from featurecache.features import Layer, layer_array

INTERFACE = ("forward_features", "forward_head", "forward_intermediates")
"""What a module of timm offers; without it only the embedding can be taken."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a module gives."""

    layers: tuple[Layer, ...]
    dim: int
    """D of the embedding."""
    logits: int
    """Classes of its own head, or 0."""
    projected: int = 0
    """E of the space shared with texts, or 0."""


class Taker:
    """Takes features from a module with timm's interface. Called with (B, 3, H, W) images and a request."""

    def __init__(self, module: nn.Module, options: BackboneOptions) -> None:
        self.module, self.precision = module, options.precision
        found = final_norm(module) if options.norm == "final" else ("none", None, 0)
        self.norm_name, self.norm, self.norm_width = found
        arguments = inspect.signature(module.forward_intermediates).parameters
        prefix_count = int(getattr(module, "num_prefix_tokens", 0) or 0)
        gives_prefix = "return_prefix_tokens" in arguments and prefix_count > 0
        self.prefix = _prefix(module) if gives_prefix else Prefix()
        self.settings = {"norm": False, "output_fmt": "NCHW"} | ({"return_prefix_tokens": True} if gives_prefix else {})
        self.sizes: list[tuple[int, int]] = []

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of token that can be had; the first is the default."""
        single = ("cls",) if self.prefix.has_class else ()
        return (*single, "mean", "patch-grid:4", "all", *(("register",) if self.prefix.registers else ()))

    def __call__(self, images: Tensor, request: Request) -> dict[str, Tensor]:
        """Return array name -> float32 features; (B, D) for embedding, cls and mean, (B, T, D) for several tokens.

        Raises:
            BackboneError: a kind of token or an array that this model does not have.
        """
        with torch.inference_mode():
            return self.learn(images, request)

    def learn(self, images: Tensor, request: Request) -> dict[str, Tensor]:
        """Return the same as a call does, with gradients where the caller wants them, in the module's mode."""
        with arithmetic(self.precision, images.device):
            return {name: values.float() for name, values in self._features(images, request).items()}

    def _features(self, images: Tensor, request: Request) -> dict[str, Tensor]:
        whole = request.embedding or request.logits or request.projected
        final, streams = self._streams(images, request.layers, whole)
        found = self._vectors(final, request) if whole else {}
        for index, stream in zip(request.layers, streams, strict=True):
            for kind in request.tokens:
                found[layer_array(kind.partition(":")[0], index)] = token(kind, stream)
        return found

    def _vectors(self, final: Tensor, request: Request) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if request.logits:
            found["logits"] = self.module.forward_head(final)
        if request.embedding or request.projected:
            embedding = self._embedding(final)
            found |= {"embedding": embedding} if request.embedding else {}
            found |= {"projected": self._projected(final, embedding)} if request.projected else {}
        return found

    def _embedding(self, final: Tensor) -> Tensor:
        """(B, D)."""
        return self._pooled(final).flatten(1)

    def _pooled(self, final: Tensor) -> Tensor:
        """(B, D), or (B, D, 1, 1) of some nets."""
        return self.module.forward_head(final, pre_logits=True)

    def _projected(self, final: Tensor, embedding: Tensor) -> Tensor:
        """(B, E).

        Raises:
            BackboneError: images and texts share no space here.
        """
        raise BackboneError(f"{type(self.module).__name__} shares no space with texts, so nothing is projected to it.")

    def _streams(self, images: Tensor, layers: tuple[int, ...], whole: bool) -> tuple[Tensor, list[Stream]]:
        if not layers:
            return (self.module.forward_features(images) if whole else images), []
        settings = {"indices": list(layers), **self.settings}
        if whole:
            final, outputs = self.module.forward_intermediates(images, **settings)
        else:
            final = images
            outputs = self.module.forward_intermediates(images, stop_early=True, intermediates_only=True, **settings)
        return final, [self._stream(output, self.sizes[index]) for index, output in zip(layers, outputs, strict=True)]

    def _stream(self, output: Any, size: tuple[int, int]) -> Stream:
        patches, prefix = (output[0], output[1]) if isinstance(output, (tuple, list)) else (output, None)
        width = patches.shape[1] if patches.ndim == 4 else patches.shape[-1]
        norm = self.norm if self._is_normed(width) else None
        return Stream(patches, prefix, self.prefix, size, norm)

    def _is_normed(self, width: int) -> bool:
        return self.norm is not None and width == self.norm_width

    def describe(self, input_size: tuple[int, int, int]) -> Shape:
        """Return what the module gives, from one forward pass of an empty image; keeps the sizes of its layers.

        Raises:
            BackboneError: the module does not pool its features to one vector per image.
        """
        images = _empty(self.module, input_size)
        with torch.inference_mode():
            final, outputs = self.module.forward_intermediates(images, **self.settings)
            maps = [output[0] if isinstance(output, (tuple, list)) else output for output in outputs]
            dim = _pooled_width(self._pooled(final), type(self.module).__name__)
        self.sizes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        if self._gives_tokens(images):
            self.settings["output_fmt"] = "NLC"
        widths = [int(m.shape[1]) for m in maps]
        layers = (Layer(i, w, self.norm_name if self._is_normed(w) else "none") for i, w in enumerate(widths))
        return Shape(tuple(layers), dim, int(getattr(self.module, "num_classes", 0) or 0))

    def _gives_tokens(self, images: Tensor) -> bool:
        """Return whether layers can be had as (B, L, D), which saves the norm from copying maps."""
        settings = {
            **self.settings,
            "output_fmt": "NLC",
            "indices": [0],
            "stop_early": True,
            "intermediates_only": True,
        }
        try:
            with torch.inference_mode():
                (output,) = self.module.forward_intermediates(images, **settings)
        except (AssertionError, ValueError, NotImplementedError):
            return False
        tokens = output[0] if isinstance(output, (tuple, list)) else output
        height, width = self.sizes[0]
        return bool(tokens.ndim == 3 and tokens.shape[1] == height * width)


class EmbeddingTaker:
    """Takes the embedding, all there is, from any module that maps (B, 3, H, W) to (B, D)."""

    kinds: tuple[str, ...] = ()

    def __init__(self, module: nn.Module, options: BackboneOptions) -> None:
        self.module, self.precision = module, options.precision

    def __call__(self, images: Tensor, request: Request) -> dict[str, Tensor]:
        """Return {"embedding": (B, D) float32}.

        Raises:
            BackboneError: layers or logits were requested.
        """
        if request.layers or request.logits or request.projected:
            raise BackboneError(
                f"{type(self.module).__name__} gives its embedding only: layers and logits need timm's interface "
                f"({', '.join(INTERFACE)}). Give --layers none, and no --logits."
            )
        with torch.inference_mode():
            return self.learn(images, request)

    def learn(self, images: Tensor, request: Request) -> dict[str, Tensor]:
        """Return the same as a call does, with gradients where the caller wants them, in the module's mode."""
        with arithmetic(self.precision, images.device):
            return {"embedding": self.module(images).float()} if request.embedding else {}

    def describe(self, input_size: tuple[int, int, int]) -> Shape:
        """Return the width of the embedding, from one forward pass of an empty image.

        Raises:
            BackboneError: the module gives something else than one vector per image.
        """
        with torch.inference_mode():
            output = self.module(_empty(self.module, input_size))
        if not isinstance(output, Tensor) or output.ndim != 2:
            seen = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise BackboneError(
                f"{type(self.module).__name__} must map (B, 3, H, W) to (B, D), but one image gave {seen}."
            )
        return Shape((), int(output.shape[1]), 0)


def taker_of(module: nn.Module, options: BackboneOptions) -> Taker | EmbeddingTaker:
    """Return what takes features from `module`."""
    has_interface = all(callable(getattr(module, name, None)) for name in INTERFACE)
    return Taker(module, options) if has_interface else EmbeddingTaker(module, options)


def _empty(module: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    like = next(module.parameters(), torch.empty(0))
    return torch.zeros(1, *input_size, device=like.device, dtype=like.dtype)


def _pooled_width(embedding: Tensor, kind: str) -> int:
    """Return D of a (1, D) or (1, D, 1, 1) embedding."""
    seen = tuple(embedding.shape)
    if embedding.ndim < 2 or any(side != 1 for side in seen[2:]):
        raise BackboneError(
            f"the embedding of {kind} must be one vector per image, but one image gave {seen}: its features are not "
            "pooled. Give another --backbone-option global_pool, or none."
        )
    return int(embedding.shape[1])


def _prefix(module: nn.Module) -> Prefix:
    registers = _held(module, "reg_token")
    return Prefix(_held(module, "cls_token") is not None, 0 if registers is None else int(registers.shape[1]))


def _held(module: nn.Module, name: str) -> Tensor | None:
    """Return a token's parameter; NaFlexViT keeps its tokens in its embedding module."""
    holders = (module, getattr(module, "embeds", None))
    found: list[Tensor] = [value for holder in holders if (value := getattr(holder, name, None)) is not None]
    return found[0] if found else None
