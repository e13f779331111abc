"""A module as a `Backbone`: frozen, with its preprocessing and its identity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm.data
import torch
from torch import nn

from featurecache.backbones import Backbone, BackboneOptions, TextTower
from featurecache.backbones._arithmetic import check_precision
from featurecache.backbones._identity import activations, plain, weights_digest
from featurecache.backbones._taking import EmbeddingTaker, Shape, Taker, taker_of
from featurecache.backbones._weights import seed_of
from featurecache.errors import BackboneError, ConfigError
from featurecache.registry import nearest

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
    taker: Taker | None = None,
    architecture: Mapping[str, Any] | None = None,
    text: TextTower | None = None,
) -> Backbone:
    """Return `module` as a frozen backbone: `asked` builds it again, if not `name`.

    `taker` takes its features, where these are not had by timm's interface; `architecture` is what the identity says of it,
    where the options do not say it all.

    Raises:
        ConfigError: a transform override that does not exist or does not fit, or an arithmetic that the device lacks.
        BackboneError: the model cannot take images of this size, or has no interface of timm's.
    """
    config = _overridden(dict(data_config), options)
    device = torch.device(options.device)
    check_precision(options.precision, device)
    module = module.eval().requires_grad_(False).to(device)
    taker = taker or taker_of(module, options)
    shape = _described(taker, name, config["input_size"])
    identity = {
        "name": name,
        "architecture": plain(dict(options.architecture if architecture is None else architecture)),
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
        dim=shape.dim,
        layers=shape.layers,
        tokens=taker.kinds,
        forward=taker,
        learn=taker.learn,
        num_logits=shape.logits,
        device=device,
        identity=identity,
        origin=origin(asked or name, options),
        projected_dim=shape.projected,
        text=text,
    )


FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, ZeroDivisionError)
"""What libraries raise when a model cannot take its input or arguments."""

NO_META = "on meta tensors"
"""In the message of a model that looks at values in its forward pass, and so says nothing about sizes on meta."""


def fits(module: nn.Module, input_size: tuple[int, int, int]) -> bool:
    """Return whether the module takes images of this size; on the meta device this costs no memory."""
    try:
        with torch.inference_mode():
            module.eval().forward_features(torch.zeros(1, *input_size, device=next(module.parameters()).device))
    except FORWARD_ERRORS as error:
        return NO_META in str(error)
    return True


def _described(taker: Taker | EmbeddingTaker, name: str, input_size: tuple[int, int, int]) -> Shape:
    try:
        return taker.describe(input_size)
    except BackboneError:
        raise
    except FORWARD_ERRORS as error:
        if NO_META in str(error):
            raise BackboneError(
                f"{name} cannot be described without its weights: {error}. Give --device cpu."
            ) from error
        if isinstance(error, NotImplementedError):
            raise BackboneError(f"{name} has no embedding that could be kept: {error} Name another model.") from error
        raise BackboneError(
            f"{name} cannot give features of images of size {tuple(input_size)}: {str(error) or type(error).__name__}. "
            "Give --image-size (and no --transform size), so that the model is built for it."
        ) from error


def origin(name: str, options: BackboneOptions) -> dict[str, Any]:
    """Return what builds the same backbone again, from whatever folder: a weights file is named by its absolute path."""
    weights = options.weights
    if weights is not None and seed_of(weights) is None:
        weights = str(Path(weights).absolute())
    return {
        "name": name, "weights": weights, "architecture": plain(dict(options.architecture)),
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
    side = options.image_size
    if side is not None and "size" in options.transform and config["input_size"] != (3, side, side):
        problems.append(
            f"image_size is {side}, but the transform's size {options.transform['size']!r}: give one of them"
        )
    if problems:
        raise ConfigError(problems)
    if side is not None:
        config["input_size"] = (3, side, side)
    return config


def _setting(key: str, value: Any) -> Any:
    if key in ("mean", "std"):
        parts = value.split(",") if isinstance(value, str) else value
        numbers = [float(v) for v in parts] if isinstance(parts, (list, tuple)) else [float(parts)]
        if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)) or (key == "std" and min(numbers) <= 0):
            raise ValueError(value)
        return tuple(numbers * (3 // len(numbers)))
    if key == "interpolation":
        if value not in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"):
            raise ValueError(value)
        return value
    number = float(value)
    if not (math.isfinite(number) and number > 0) or (key == "size" and number != int(number)):
        raise ValueError(value)
    return (3, int(number), int(number)) if key == "size" else number


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
