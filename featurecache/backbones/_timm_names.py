"""Names of timm's models: the default tag, the only tag that begins so, the nearest when there is none."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import timm
import timm.models

from featurecache.errors import UnknownNameError
from featurecache.registry import nearest

log = logging.getLogger(__name__)

SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")
"""Names that timm looks up itself: a repository of the hub, a folder."""


@dataclass(frozen=True, slots=True)
class Named:
    """A model name, resolved."""

    full: str
    """What `timm.create_model` is given: with its tag, where there is one."""
    architecture: str
    """Without the tag."""


def resolve(model_id: str) -> Named:
    """Return the model that a name stands for: with the default tag, or the only tag that begins as the given one.

    Raises:
        UnknownNameError: no such model or tag; names the nearest and how to list them.
    """
    if model_id.startswith(SOURCES):
        source, _, place = model_id.partition(":")
        full = f"{source}:{Path(place).absolute()}" if source == "local-dir" else model_id
        return Named(full, full)
    name, _, tag = model_id.partition(".")
    deprecated = timm.models.get_deprecated_models()
    current = deprecated.get(name)
    if current:
        log.info("timm calls %s %s now", name, current)
        name, _, newer = current.partition(".")
        tag = tag or newer
    if name in deprecated or not timm.is_model(name):
        known = timm.list_models()  # which sorts a thousand names
        raise UnknownNameError(
            f"timm has no model called {name!r}.{nearest(name, known)} "
            f"`featurecache list backbones --filter '*{name.split('_')[0]}*'` shows those that look like it."
        )
    tags = [full.partition(".")[2] for full in timm.models.get_arch_pretrained_cfgs(name)]
    chosen = _tag(name, tag, tags) if tag else timm.models.get_pretrained_cfg(name).tag
    return Named(f"{name}.{chosen}" if chosen else name, name)


def _tag(name: str, tag: str, tags: list[str]) -> str:
    if tag in tags:
        return tag
    begin = [known for known in tags if known.startswith(tag)]
    if len(begin) == 1:
        return begin[0]
    listed = ", ".join(begin or sorted(filter(None, tags))) or "none"
    why = "several weights whose tag begins with" if begin else "no weights with the tag"
    hint = "" if begin else nearest(tag, tags)
    raise UnknownNameError(
        f"timm:{name} has {why} {tag!r}.{hint} Its tags: {listed}. "
        f"`featurecache list backbones --filter '{name}*'` shows the models of this kind."
    )
