"""Every model of timm: `timm:NAME[.tag]`, `hf-hub:OWNER/NAME`, `local-dir:FOLDER`.

The recorded name carries the tag only where the weights come from it; with `--weights` it is the architecture's name, and
the digest says which weights. On the device "meta" nothing is downloaded or allocated: the backbone can be described,
not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import timm.data
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from featurecache.backbones import Backbone, BackboneOptions
from featurecache.backbones._downloading import hub, reaching
from featurecache.backbones._skeletons import without_values
from featurecache.backbones._timm_names import SOURCES, Named, resolve
from featurecache.backbones._timm_weights import read_file, with_weights
from featurecache.backbones._weights import weights_file
from featurecache.backbones._wrapping import FORWARD_ERRORS, check_builds, fits, wrap
from featurecache.errors import BackboneError, ConfigError

OURS = {
    "pretrained": "--weights", "checkpoint_path": "--weights", "pretrained_cfg": "the tag of the name",
    "pretrained_cfg_overlay": "--transform", "features_only": "--layers", "device": "--device",
    "dtype": "--precision", "cache_dir": "HF_HOME", "in_chans": "images of three channels",
}  # fmt: skip
"""Arguments of `timm.create_model` that are settings of ours, and what to give instead."""

PADDINGS = ("", "same", "valid", "symmetric")
"""Values of `pad_type`; timm takes any other for symmetric without a word."""


def build(model_id: str, *, options: BackboneOptions) -> Backbone:
    """Build the model called `NAME[.tag]`; an unambiguous beginning of a tag is enough.

    Raises:
        UnknownNameError: timm has no such model, or the model no such tag; names the nearest.
        WeightsError: the weights cannot be had, or are not of this architecture.
        BackboneError, ConfigError: an option that this model cannot take.
    """
    named = resolve(model_id)
    path = weights_file(options.weights)
    if path is not None and options.device != "meta":
        options, arguments, skeleton, module = _from_file(named, options, path)
    else:
        arguments, skeleton = _described(named, options)
        create = partial(timm.create_model, named.full, **arguments)
        is_meta = options.device == "meta"
        module = skeleton if is_meta else with_weights(create, named.full, skeleton, options.weights)
    config = dict(timm.data.resolve_model_data_config(skeleton))
    side = arguments.get("img_size", options.image_size)
    if side is not None:
        config["input_size"] = (3, *((side, side) if isinstance(side, int) else side))
    name = _recorded(named, skeleton, options)
    return wrap(module, name=name, asked=f"timm:{named.full}", options=options, data_config=config)


def _from_file(
    named: Named, options: BackboneOptions, path: Path
) -> tuple[BackboneOptions, dict[str, Any], nn.Module, nn.Module]:
    """Return the model with the weights of a file, with as many classes as the file has where the options name none.

    With it the options that say so, its arguments and its skeleton.
    """
    arguments, skeleton = _described(named, options)
    with reaching(hub()) if _is_on_hub(named) else nullcontext(""):
        given = read_file(partial(timm.create_model, named.full, **arguments), skeleton, path)
        if given.num_classes is not None and "num_classes" not in options.architecture:
            options = replace(options, architecture={**options.architecture, "num_classes": given.num_classes})
            arguments, skeleton = _described(named, options)
        module = given.load(partial(timm.create_model, named.full, **arguments), named.full)
    return options, arguments, skeleton, module


def _described(named: Named, options: BackboneOptions) -> tuple[dict[str, Any], nn.Module]:
    """Return the arguments and skeleton of what the options ask for."""
    arguments = _arguments(options)
    found = _sized_at_once(named, arguments, options)
    if found:
        return found
    skeleton = _skeleton(named, arguments, options)
    if not _is_on_hub(named):
        return _sized(named, arguments, skeleton, options)
    with reaching(hub()):  # its configuration is in the cache now, and the library would ask for it again all the same
        return _sized(named, arguments, skeleton, options)


def _recorded(named: Named, skeleton: nn.Module, options: BackboneOptions) -> str:
    """Return the name of the weights where they come by name, else that of the architecture: the digest says the rest."""
    if options.weights is None and not named.full.startswith("local-dir:"):
        return f"timm:{named.full}"
    config: Any = skeleton.pretrained_cfg
    return f"timm:{config['architecture'] if named.full.startswith(SOURCES) else named.architecture}"


def _arguments(options: BackboneOptions) -> dict[str, Any]:
    given = dict(options.architecture)
    problems = [f"{key} is not an option of the architecture: use {OURS[key]}" for key in given if key in OURS]
    problems += [f"the architecture option {key} has no value" for key, value in given.items() if value is None]
    if options.image_size is not None and given.get("img_size", options.image_size) != options.image_size:
        problems.append(f"image_size is {options.image_size}, but the architecture's img_size {given['img_size']!r}")
    if given.get("pad_type", "") not in PADDINGS:
        problems.append(f"pad_type must be same, valid or symmetric, got {given['pad_type']!r}")
    if problems:
        raise ConfigError(problems)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def _skeleton(named: Named, arguments: Mapping[str, Any], options: BackboneOptions) -> nn.Module:
    if not named.full.startswith(SOURCES):
        return check_builds(lambda: _on_meta(named, arguments), f"timm:{named.full}", options.architecture)
    with reaching(hub()) if _is_on_hub(named) else nullcontext("") as unreachable:
        try:
            return _on_meta(named, arguments)
        except Exception as error:  # each transport of the hub raises errors of its own kind
            reason = unreachable or f"{type(error).__name__}: {error}".splitlines()[0]
            raise BackboneError(
                f"the configuration of {named.full} cannot be had, or does not fit ({reason}). Offline, name the "
                "architecture, timm:NAME, and give --weights FILE or --weights random:SEED."
            ) from error


def _is_on_hub(named: Named) -> bool:
    return named.full.startswith(SOURCES) and not named.full.startswith("local-dir:")


def _on_meta(named: Named, arguments: Mapping[str, Any]) -> nn.Module:
    with without_values():
        module: nn.Module = timm.create_model(named.full, pretrained=False, **arguments)
    return module


def _sized_at_once(
    named: Named, arguments: dict[str, Any], options: BackboneOptions
) -> tuple[dict[str, Any], nn.Module] | None:
    """Return the arguments and skeleton for the asked image size where nothing is wrong; None: what is, is still to find."""
    if options.image_size is None or named.full.startswith(SOURCES):
        return None
    try:
        return _at(named, arguments, options.image_size)
    except FORWARD_ERRORS:
        return None


def _sized(
    named: Named, arguments: dict[str, Any], skeleton: nn.Module, options: BackboneOptions
) -> tuple[dict[str, Any], nn.Module]:
    """Return the arguments and skeleton for the asked image size; nets that fix no size need no argument.

    Raises:
        BackboneError: the model cannot take images of that size; names the nearest that it can.
    """
    side = options.image_size or arguments.get("img_size")
    if not isinstance(side, int):
        return arguments, skeleton
    found = _at(named, arguments, side)
    if found is not None:
        return found
    step = _step(skeleton)
    below = (c for c in range(side // step * step, 0, -step) if c != side and _at(named, arguments, c))
    above = (c for c in range((side // step + 1) * step, side + 9 * step, step) if _at(named, arguments, c))
    sizes = [str(size) for size in (next(below, None), next(above, None)) if size is not None]
    raise BackboneError(
        f"timm:{named.full} cannot take images of {side} pixels: sides are multiples of {step} (patch or stride). "
        f"The nearest that it takes: {' and '.join(sizes) or 'its own, without --image-size'}."
    )


def _at(named: Named, arguments: dict[str, Any], side: int) -> tuple[dict[str, Any], nn.Module] | None:
    for extra in ({"img_size": side}, {}):
        try:
            skeleton = _on_meta(named, {**arguments, **extra})
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            continue  # a net without a fixed size: the same weights, other images
        except (ValueError, AssertionError, RuntimeError, ZeroDivisionError):
            return None
        patch = _patch(skeleton)
        if patch is not None and side % patch:
            return None
        takes = _is_plain(skeleton) or fits(skeleton, (3, side, side))
        return ({**arguments, **extra}, skeleton) if takes else None
    return None


def _is_plain(module: nn.Module) -> bool:
    """Return whether it is a ViT of whole patches, built for its size: it takes that, and a trial on meta is slow."""
    return type(module) is VisionTransformer and type(module.patch_embed) is PatchEmbed


def _patch(module: nn.Module) -> int | None:
    size = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    return int(size[0]) if isinstance(size, (tuple, list)) else size


def _step(module: nn.Module) -> int:
    reductions = [int(info.get("reduction", 1)) for info in getattr(module, "feature_info", None) or [{}]]
    return _patch(module) or max(reductions)
