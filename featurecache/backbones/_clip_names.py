"""Names of open_clip's models, and what stands behind one: its configuration, its preprocessing, its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer
from open_clip.transform import PreprocessCfg

from featurecache.backbones import BackboneOptions
from featurecache.errors import BackboneError, ConfigError, UnknownNameError
from featurecache.registry import nearest

OURS = {
    "vision_cfg.image_size": "--image-size", "vision_cfg.timm_model_pretrained": "--weights",
    "text_cfg.hf_model_pretrained": "--weights", "cast_dtype": "--precision",
}  # fmt: skip
"""Settings of a configuration that are settings of ours, and what to give instead."""

CROP_MODES = {"shortest": "center", "squash": "squash"}
"""open_clip's word for how a picture is brought to its size -> timm's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A model name, resolved."""

    architecture: str
    """Of open_clip's list, or the stem of a file."""
    tag: str = ""
    asked: str
    """What names it again, from whatever folder."""
    config: Mapping[str, Any]
    """open_clip's: embed_dim, vision_cfg, text_cfg."""
    pretrained: Mapping[str, Any] = field(default_factory=dict)
    """What open_clip says of the tag: where the weights lie, their preprocessing and activation."""
    is_file: bool = False

    @property
    def full(self) -> str:
        """The architecture, with its tag where there is one."""
        return f"{self.architecture}/{self.tag}" if self.tag else self.architecture

    def tokenizer(self, config: Mapping[str, Any]) -> Any:
        """Return the tokenizer that the configuration asks for; one of the hub may be downloaded."""
        text = config["text_cfg"]
        length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
        kwargs = dict(text.get("tokenizer_kwargs") or {})
        if text.get("hf_tokenizer_name"):
            mode = text.get("tokenizer_mode")
            return HFTokenizer(text["hf_tokenizer_name"], context_length=length, tokenizer_mode=mode, **kwargs)
        return open_clip.SimpleTokenizer(context_length=length, **kwargs)


def resolve(model_id: str) -> Named:
    """Return what a name stands for; slashes in an architecture's name (`ViT-B/32`) are open_clip's hyphens.

    Raises:
        UnknownNameError: no such architecture or tag; names the nearest.
        BackboneError: a file that is no configuration of open_clip's.
    """
    if model_id.endswith(".json"):
        return _from_file(Path(model_id))
    known = open_clip.list_models()
    architecture, tag = model_id.replace("/", "-"), ""
    if architecture not in known:
        before, _, tag = model_id.rpartition("/")
        architecture = before.replace("/", "-") or tag
    if architecture not in known:
        raise UnknownNameError(
            f"open_clip has no architecture called {architecture!r}.{nearest(architecture, known)} "
            "open_clip.list_models() shows them all; a configuration of one's own is named open_clip:FILE.json."
        )
    found: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and not found:
        raise UnknownNameError(
            f"open_clip:{architecture} has no weights with the tag {tag!r}.{nearest(tag, tags)} "
            f"Its tags: {', '.join(tags) or 'none'}."
        )
    tag = tag.lower().replace("-", "_")
    asked = f"{architecture}/{tag}" if tag else architecture
    config = open_clip.get_model_config(architecture)
    return Named(architecture=architecture, tag=tag, asked=asked, config=config, pretrained=found)


def _from_file(path: Path) -> Named:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BackboneError(f"the configuration {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise BackboneError(f"{path} is no JSON: {error}") from None
    config = value.get("model_cfg", value) if isinstance(value, dict) else {}
    wrong = [key for key, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict))
             if not isinstance(config.get(key), kind)]  # fmt: skip
    if wrong:
        raise BackboneError(
            f"{path} is no configuration of open_clip's: {', '.join(wrong)} missing or of the wrong kind. "
            "It holds embed_dim, vision_cfg and text_cfg."
        )
    given = value.get("preprocess_cfg") or {}
    return Named(
        architecture=path.stem, asked=str(path.absolute()), config=config, pretrained=dict(given), is_file=True
    )


def configured(named: Named, options: BackboneOptions) -> dict[str, Any]:
    """Return the configuration with the options' changes: `quick_gelu=true`, `vision_cfg.layers=4`.

    Raises:
        ConfigError: an option that has another name here, no value, or names no part of the configuration.
    """
    config = deepcopy(dict(named.config))
    problems = []
    for key, value in options.architecture.items():
        part, dot, setting = key.partition(".")
        if key in OURS:
            problems.append(f"{key} is not an option of the architecture: use {OURS[key]}")
        elif value is None:
            problems.append(f"the architecture option {key} has no value")
        elif not dot and not isinstance(config.get(key), dict):
            config[key] = value
        elif dot and isinstance(config.get(part), dict):
            config[part][setting] = value
        else:
            known = ", ".join(f"{name}.NAME" for name, held in config.items() if isinstance(held, dict))
            problems.append(f"the architecture has no option {key!r}: it takes quick_gelu, embed_dim, {known}")
    if problems:
        raise ConfigError(problems)
    vision, text = config["vision_cfg"], config["text_cfg"]
    vision["image_size"] = options.image_size or vision.get("image_size", 224)
    for tower, name in ((vision, "timm_model"), (text, "hf_model")):
        if f"{name}_name" in tower:
            tower[f"{name}_pretrained"] = False  # weights come from where the user said, never on the side
    return config


def preprocessing(named: Named, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's words for the preprocessing of the tag, else open_clip's default, at the size of the image tower.

    Raises:
        BackboneError: a way of resizing that is not known.
    """
    settings = asdict(PreprocessCfg())
    settings |= {key: value for key, value in named.pretrained.items() if key in settings and value is not None}
    if settings["resize_mode"] not in CROP_MODES:
        known = ", ".join(CROP_MODES)
        raise BackboneError(f"open_clip:{named.full} resizes by {settings['resize_mode']!r}; known here: {known}.")
    side = config["vision_cfg"]["image_size"]
    size = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
    return {
        "input_size": (3, *size), "mean": tuple(settings["mean"]), "std": tuple(settings["std"]), "crop_pct": 1.0,
        "crop_mode": CROP_MODES[settings["resize_mode"]], "interpolation": settings["interpolation"],
    }  # fmt: skip
