"""Backbones of one's own: `python:package.module:function`, found in the environment and in the current folder.

The function is called with `--backbone-option` as keyword arguments and returns one of

- an `nn.Module` with timm's interface (`forward_features`, `forward_head`, `forward_intermediates`): everything exists;
- any other `nn.Module` that maps (B, 3, H, W) to (B, D): only the embedding exists, `layers` is empty;
- a ready `Backbone`: taken as it is.

A module may carry `pretrained_cfg`, a mapping with any of `input_size, mean, std, interpolation, crop_pct, crop_mode`; what
it lacks is timm's default (224 pixels, ImageNet mean and deviation, bicubic, crop 0.875). The module comes with its weights;
`--weights FILE` loads others strictly, `--weights random:SEED` calls the function with that seed. The identity sees weights
and arguments, not code: give the function another name when its code changes the features.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import timm.data
import torch
from torch import nn

from featurecache.backbones import Backbone, BackboneOptions
from featurecache.backbones._weights import load_file_into, seed_of, weights_file
from featurecache.backbones._wrapping import wrap
from featurecache.errors import BackboneError, ConfigError, UnknownNameError
from featurecache.registry import nearest


def build(model_id: str, *, options: BackboneOptions) -> Backbone:
    """Build what the function called `package.module:function` returns.

    Raises:
        UnknownNameError: there is no such module or function.
        BackboneError: the function returns something else than the contract says.
        WeightsError: the weights file is not of this module.
        ConfigError: an option that the function, or a ready backbone, does not take.
    """
    name = f"python:{model_id}"
    with _current_folder_importable():
        function = _function(model_id)
        built = _called(function, name, options)
    if isinstance(built, Backbone):
        return _as_it_is(built, name, options)
    if not isinstance(built, nn.Module):
        raise BackboneError(
            f"{name} returned {type(built).__name__}, but must return an nn.Module "
            "(timm's interface, or images to vectors) or a Backbone."
        )
    path = weights_file(options.weights)
    if path is not None:
        load_file_into(built, path, name)
    own: dict[str, Any] = {"input_size": (3, 224, 224), **(getattr(built, "pretrained_cfg", None) or {})}
    return wrap(built, name=name, options=options, data_config=timm.data.resolve_data_config({}, pretrained_cfg=own))


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Look in the current folder last, so that no file there hides a module of the environment."""
    folder = str(Path.cwd())
    importlib.invalidate_caches()
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _function(model_id: str) -> Callable[..., Any]:
    place, colon, name = model_id.partition(":")
    if not (place and colon and name):
        raise UnknownNameError(
            f"a backbone of one's own is named python:package.module:function, got python:{model_id}"
        )
    module = _module(place)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise UnknownNameError(
            f"{place} has no function {name!r}.{nearest(name, known)} Its functions: {', '.join(sorted(known)) or 'none'}."
        )
    found: Callable[..., Any] = function
    return found


def _module(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise UnknownNameError(
                f"there is no Python module {place!r} in the environment or in {Path.cwd()}. "
                "Install it, or run from the folder that holds it."
            ) from None
        raise BackboneError(f"{place} cannot be imported: it needs {error.name!r}, which is not installed.") from error


def _called(function: Callable[..., Any], name: str, options: BackboneOptions) -> Any:
    arguments = dict(options.architecture)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            [f"{name}{inspect.signature(function)} does not take the options {arguments}: {error}"]
        ) from None
    seed = seed_of(options.weights)
    if seed is None:
        return function(**arguments)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return function(**arguments)


def _as_it_is(built: Backbone, name: str, options: BackboneOptions) -> Backbone:
    default = BackboneOptions()
    changed = [
        field for field in ("weights", "transform", "image_size", "norm")
        if getattr(options, field) != getattr(default, field)
    ]  # fmt: skip
    problems = [f"{name} returns a ready Backbone, which takes no {field}: set it in the function" for field in changed]
    own = built.identity.get("precision", "fp32")
    if options.precision != own:
        problems.append(f"{name} returns a ready Backbone that computes in {own}: give --precision {own}")
    if problems:
        raise ConfigError(problems)
    device = torch.device(options.device)
    built.module.to(device)
    origin = {"name": name, "weights": None, "architecture": dict(options.architecture)}
    return dataclasses.replace(built, device=device, origin={**built.origin, **origin})
