"""A model of open_clip with its weights: the download of a tag, a file, or a seed. Files are loaded strictly."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from torch import Tensor, nn

from featurecache.backbones import BackboneOptions
from featurecache.backbones._checkpoint_files import kind_of
from featurecache.backbones._clip_names import Named
from featurecache.backbones._downloading import hub, reaching
from featurecache.backbones._skeletons import without_values
from featurecache.backbones._weights import load_file_into, seed_of
from featurecache.backbones._wrapping import FORWARD_ERRORS
from featurecache.errors import BackboneError, WeightsError

log = logging.getLogger(__name__)

WAY_OUT = "Give --weights FILE, or --weights random:SEED."


def with_weights(named: Named, config: Mapping[str, Any], options: BackboneOptions) -> nn.Module:
    """Return the model with the weights of its tag, of a file, or of a seed, for images of the asked size.

    Raises:
        WeightsError: they cannot be had, or are not of this architecture.
        BackboneError: there is no such model, or none for images of this size.
    """
    name = f"open_clip:{named.full}"
    seed = seed_of(options.weights)
    if options.device == "meta":
        with without_values():
            return _sized(_built(name, config, 0), options.image_size, name)
    if options.weights is None and not named.tag:
        raise WeightsError(_tagless(named))
    path = None if seed is not None else Path(options.weights) if options.weights else _downloaded(named)
    if path is not None:
        kind_of(path)  # refuses what is no file of weights before the model is built, which takes seconds
    model = _built(name, config, seed or 0)
    if path is not None:
        load_file_into(model, path, name, partial(_converted, model))
    return _sized(model, options.image_size, name)


def _tagless(named: Named) -> str:
    if named.is_file:
        return f"{named.asked} says what the model is, not its weights. {WAY_OUT}"
    tags = open_clip.list_pretrained_tags_by_model(named.architecture)
    if not tags:
        return f"open_clip has no weights for {named.architecture}. {WAY_OUT}"
    return (
        f"open_clip:{named.architecture} names no weights. Its tags: {', '.join(tags)}. "
        f"Name one as open_clip:{named.architecture}/TAG, or give --weights FILE or random:SEED."
    )


def _built(name: str, config: Mapping[str, Any], seed: int) -> nn.Module:
    """Return the model that a configuration describes, drawn from `seed`; no global generator moves."""
    settings: dict[str, Any] = deepcopy(dict(config))
    is_custom = settings.pop("custom_text", False) or "hf_model_name" in settings["text_cfg"]
    kind = open_clip.CLIP
    if is_custom:
        kind = open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP
    try:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            model: nn.Module = kind(**settings)
            if hasattr(model, "text_decoder"):  # no feature passes through it, and its projection is left as memory was
                nn.init.zeros_(model.text_decoder.text_projection)
    except (*FORWARD_ERRORS, OSError, ImportError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BackboneError(f"{name} cannot be built from its configuration ({reason})") from None
    return model


def _downloaded(named: Named) -> Path:
    place = named.pretrained.get("hf_hub")
    where = f"{hub()}/{place}" if place else str(named.pretrained.get("url"))
    log.info("weights of open_clip:%s: from %s, unless they are in the cache already", named.full, where)
    with reaching(where) as unreachable:
        try:
            return Path(open_clip.download_pretrained(dict(named.pretrained)))
        except Exception as error:  # each transport of the hub raises errors of its own kind
            reason = unreachable or f"{type(error).__name__}: {error}".splitlines()[0]
            raise WeightsError(
                f"the weights of open_clip:{named.full} cannot be had from {where} ({reason}). {WAY_OUT}"
            ) from error


def _converted(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in the way of open_clip: names of older files, position embeddings of another image size."""
    try:
        state = dict(convert_state_dict(model, dict(given)))
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        for key, own in (("logit_scale", model.logit_scale), ("logit_bias", model.logit_bias)):
            if key in state and isinstance(own, Tensor):
                state[key] = state[key].reshape(own.shape)
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
    except FORWARD_ERRORS:
        return dict(given)  # of another kind altogether: the keys say so
    return state


def _sized(model: nn.Module, side: int | None, name: str) -> nn.Module:
    """Check the side of the images, and bring a tower of timm's to it; towers of open_clip's own are built for it.

    Raises:
        BackboneError: no whole number of patches; names the nearest sides.
    """
    visual: Any = model.visual
    if side is None:
        return model
    step = _step(visual)
    if side % step:
        raise BackboneError(
            f"{name} cannot take images of {side} pixels: sides are multiples of {step} (patch or stride). "
            f"The nearest that it takes: {max(side // step, 1) * step} and {(side // step + 1) * step}."
        )
    if hasattr(visual, "set_input_size"):
        visual.set_input_size(side)
    return model


def _step(visual: Any) -> int:
    patch = getattr(visual, "patch_size", None) or getattr(
        getattr(getattr(visual, "trunk", None), "patch_embed", None), "patch_size", None
    )
    if patch is None:
        return 32 if hasattr(visual, "attnpool") else 1
    return int(patch[0]) if isinstance(patch, (tuple, list)) else int(patch)
