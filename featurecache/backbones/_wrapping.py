"""A timm-like module as a `Backbone`: one forward pass gives the embedding and the chosen tokens of the chosen layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import timm.data
import torch
from torch import Tensor, nn

from featurecache.backbones import Backbone, BackboneOptions, Request
from featurecache.backbones._identity import activations, plain, weights_digest
from featurecache.backbones._tokens import Stream, final_norm, token
from featurecache.errors import BackboneError, ConfigError
from featurecache.features import Layer, layer_array
from featurecache.registry import nearest

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
TRANSFORM_NAMES = {
    "mean": "mean",
    "std": "std",
    "size": "input_size",
    "crop": "crop_pct",
    "interpolation": "interpolation",
}


def wrap(
    module: nn.Module,
    *,
    name: str,
    options: BackboneOptions,
    data_config: Mapping[str, Any],
    asked: str | None = None,
) -> Backbone:
    """Return `module`, which has timm's interface, as a frozen backbone; `asked` is what builds it again, if not `name`.

    Raises:
        ConfigError: a transform override that does not exist or does not fit.
        BackboneError: the model cannot take images of this size, or has no interface of timm's.
    """
    config = _overridden(dict(data_config), options)
    device = torch.device(options.device)
    module = module.eval().requires_grad_(False).to(device)
    taker = Taker(module, options)
    layers, dim, logits = _described(taker, name, config["input_size"])
    prefix = taker.has_class_token
    identity = {
        "name": name,
        "architecture": plain(dict(options.architecture)),
        "image_size": list(config["input_size"][1:]),
        "activation": activations(module),
        "weights": weights_digest(module),
        "transform": plain(
            {key: config[key] for key in ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")}
        ),
        "norm": options.norm,
        "precision": options.precision,
    }
    return Backbone(
        name=name,
        module=module,
        transform=timm.data.create_transform(**config, is_training=False),
        input_size=tuple(config["input_size"]),
        dim=dim,
        layers=layers,
        tokens=("cls", "mean", "patch-grid:4") if prefix else ("mean", "patch-grid:4"),
        forward=taker,
        num_logits=logits,
        device=device,
        identity=identity,
        origin=origin(asked or name, options),
    )


FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, ZeroDivisionError)
"""What libraries raise when a model cannot take its input or arguments."""


def fits(module: nn.Module, input_size: tuple[int, int, int]) -> bool:
    """Return whether the module takes images of this size; on the meta device this costs no memory."""
    try:
        with torch.inference_mode():
            module.eval().forward_features(torch.zeros(1, *input_size, device=next(module.parameters()).device))
    except FORWARD_ERRORS:
        return False
    return True


def _described(taker: Taker, name: str, input_size: tuple[int, int, int]) -> tuple[tuple[Layer, ...], int, int]:
    try:
        with torch.inference_mode():
            return taker.describe(input_size)
    except FORWARD_ERRORS as error:
        raise BackboneError(
            f"{name} cannot give features of images of size {tuple(input_size)}: {str(error) or type(error).__name__}. "
            "Give --image-size (and no --transform size), so that the model is built for it."
        ) from error


def origin(name: str, options: BackboneOptions) -> dict[str, Any]:
    """Return what builds the same backbone again."""
    return {
        "name": name, "weights": options.weights, "architecture": plain(dict(options.architecture)),
        "transform": plain(dict(options.transform)), "image_size": options.image_size, "norm": options.norm,
        "precision": options.precision,
    }  # fmt: skip


def _overridden(config: dict[str, Any], options: BackboneOptions) -> dict[str, Any]:
    problems = []
    for key, value in options.transform.items():
        if key not in TRANSFORM_NAMES:
            known = ", ".join(TRANSFORM_NAMES)
            problems.append(f"transform has no setting {key!r}.{nearest(key, list(TRANSFORM_NAMES))} Known: {known}")
            continue
        try:
            config[TRANSFORM_NAMES[key]] = _setting(key, value)
        except (TypeError, ValueError):
            problems.append(f"transform {key} cannot be {value!r}")
    if problems:
        raise ConfigError(problems)
    if options.image_size is not None:
        config["input_size"] = (3, options.image_size, options.image_size)
    return config


def _setting(key: str, value: Any) -> Any:
    if key in ("mean", "std"):
        parts = value.split(",") if isinstance(value, str) else value
        numbers = [float(v) for v in parts] if isinstance(parts, (list, tuple)) else [float(parts)]
        if len(numbers) not in (1, 3) or (key == "std" and min(numbers) <= 0):
            raise ValueError(value)
        return tuple(numbers * (3 // len(numbers)))
    if key == "interpolation":
        if value not in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"):
            raise ValueError(value)
        return value
    number = float(value)
    if number <= 0:
        raise ValueError(value)
    return (3, int(number), int(number)) if key == "size" else number


class Taker:
    """Takes the requested features from one forward pass. Called with (B, 3, H, W) images and a request."""

    def __init__(self, module: nn.Module, options: BackboneOptions) -> None:
        self.module, self.precision = module, options.precision
        self.norm_name, self.norm, self.norm_width = (
            final_norm(module) if options.norm == "final" else ("none", None, 0)
        )
        self._arguments = inspect.signature(module.forward_intermediates).parameters
        self.prefix_count = int(getattr(module, "num_prefix_tokens", 0) or 0)
        self.gives_prefix = "return_prefix_tokens" in self._arguments and self.prefix_count > 0
        self.has_class_token = self.gives_prefix and _has_class_token(module)

    def __call__(self, images: Tensor, request: Request) -> dict[str, Tensor]:
        """Return array name -> float32 features; (B, D) for embedding, cls and mean, (B, K*K, D) for grids."""
        with torch.inference_mode(), self._arithmetic(images.device):
            return {name: values.float() for name, values in self._features(images, request).items()}

    def _arithmetic(self, device: torch.device) -> Any:
        torch.backends.cudnn.allow_tf32 = False
        return torch.autocast(device.type, AUTOCAST[self.precision]) if self.precision in AUTOCAST else nullcontext()

    def _features(self, images: Tensor, request: Request) -> dict[str, Tensor]:
        whole = request.embedding or request.logits
        found: dict[str, Tensor] = {}
        final, streams = self._streams(images, request.layers, whole)
        if whole:
            if request.embedding:
                found["embedding"] = self.module.forward_head(final, pre_logits=True)
            if request.logits:
                found["logits"] = self.module.forward_head(final)
        for index, stream in zip(request.layers, streams, strict=True):
            if self._is_normed(stream.width):
                assert self.norm is not None
                stream = stream.normed(self.norm)
            for kind in request.tokens:
                found[layer_array(kind.partition(":")[0], index)] = token(kind, stream, self.has_class_token)
        return found

    def _is_normed(self, width: int) -> bool:
        return self.norm is not None and width == self.norm_width

    def _streams(self, images: Tensor, layers: tuple[int, ...], whole: bool) -> tuple[Tensor, list[Stream]]:
        if not layers:
            return self.module.forward_features(images), []
        extra = {"return_prefix_tokens": True} if self.gives_prefix else {}
        settings = {"indices": list(layers), "norm": False, "output_fmt": "NCHW", **extra}
        if whole:
            final, outputs = self.module.forward_intermediates(images, **settings)
            return final, [_stream(output) for output in outputs]
        outputs = self.module.forward_intermediates(images, stop_early=True, intermediates_only=True, **settings)
        return images, [_stream(output) for output in outputs]

    def describe(self, input_size: tuple[int, int, int]) -> tuple[tuple[Layer, ...], int, int]:
        """Return (layers, embedding width, number of logits) from one forward pass of an empty image."""
        like = next(self.module.parameters())
        images = torch.zeros(1, *input_size, device=like.device, dtype=like.dtype)
        extra = {"return_prefix_tokens": True} if self.gives_prefix else {}
        final, outputs = self.module.forward_intermediates(images, norm=False, output_fmt="NCHW", **extra)
        widths = [_stream(output).width for output in outputs]
        layers = tuple(
            Layer(index, width, self.norm_name if self._is_normed(width) else "none")
            for index, width in enumerate(widths)
        )
        dim = self.module.forward_head(final, pre_logits=True).shape[-1]
        return layers, dim, int(getattr(self.module, "num_classes", 0) or 0)


def _stream(output: Any) -> Stream:
    if isinstance(output, (tuple, list)):
        return Stream(output[0], output[1])
    return Stream(output, None)


def _has_class_token(module: nn.Module) -> bool:
    holders = (module, getattr(module, "embeds", None))  # NaFlexViT keeps its tokens in its embedding module
    return any(getattr(holder, "cls_token", None) is not None for holder in holders if holder is not None)


def check_builds(build: Callable[[], nn.Module], name: str, architecture: Mapping[str, Any]) -> nn.Module:
    """Return what `build` builds, with what the library says of wrong arguments as our error."""
    try:
        return build()
    except FORWARD_ERRORS as error:
        if not architecture:
            raise
        reason = f"{type(error).__name__}: {error}"
        raise BackboneError(
            f"{name} cannot be built with the architecture options {plain(dict(architecture))!r} ({reason})"
        ) from None
