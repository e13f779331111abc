"""Templates for class names, such as "a photo of a {}.": by name, from a file, or as typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from featurecache.errors import ConfigError
from featurecache.registry import nearest

PLACE = "{}"
"""Where the class name goes."""

NAMED = {"openai-imagenet": OPENAI_IMAGENET_TEMPLATES, "simple-imagenet": SIMPLE_IMAGENET_TEMPLATES}
"""Sets that open_clip ships: OpenAI's 80 for ImageNet, and the 7 of them that are nearly as good."""


def templates(words: str) -> tuple[str, ...]:
    """Return the templates that `words` name: a set, a file with one on each line, or one template as typed.

    Raises:
        ConfigError: it is none of these, or lines of the file lack their {}.
    """
    name = words.replace("_", "-")
    if name in NAMED:
        return tuple(make(PLACE) for make in NAMED[name])
    if PLACE in words:
        return (words,)
    path = Path(words)
    if not path.is_file():
        raise ConfigError([
            f"prompts must be one of {', '.join(NAMED)}, a file with a template on each line, or a text with {PLACE} "
            f"for the class name; got {words!r}.{nearest(name, list(NAMED))}"
        ])  # fmt: skip
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return checked([line for line in lines if line])


def checked(found: Sequence[str]) -> tuple[str, ...]:
    """Return templates that all have a place for the class name.

    Raises:
        ConfigError: there is none, or one without {}.
    """
    problems = [f"the template {text!r} has no {PLACE} for the class name" for text in found if PLACE not in text]
    if problems or not found:
        raise ConfigError(problems or ["there is no template"])
    return tuple(found)


def prompts(class_names: Sequence[str], found: Sequence[str]) -> list[str]:
    """Return every template with every class name, all of the first name first; underscores of names become spaces.

    Raises:
        ConfigError: no class names, or templates without their {}.
    """
    if not class_names:
        raise ConfigError(["there are no class names to make prompts of"])
    return [text.replace(PLACE, name.replace("_", " ")) for name in class_names for text in checked(found)]
