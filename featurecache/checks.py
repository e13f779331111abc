"""Checking what users typed: configs and options, every problem at once, before anything is built."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from featurecache.errors import ConfigError, UsageError
from featurecache.places import Url, is_url
from featurecache.registry import nearest, plain

T = TypeVar("T")


def check(*conditions: tuple[bool, str]) -> None:
    """Raise one `ConfigError` with the message of every condition that is false."""
    problems = [message for holds, message in conditions if not holds]
    if problems:
        raise ConfigError(problems)


class Config:
    """Base of the Config of every verb: its fields take paths as text, and one path or text where several may be given.

    `TrainHeadConfig(store="photos.zarr", out="runs/x")` so holds the same as with `Path(...)`, however it is made.
    """

    def __init_subclass__(cls) -> None:
        """Let paths be converted before the class itself checks its values."""
        super().__init_subclass__()
        own = cls.__dict__.get("__post_init__")

        def __post_init__(self: Config) -> None:
            convert_paths(self)
            if own is not None:
                own(self)
            else:
                super(cls, self).__post_init__()  # type: ignore[misc]

        cls.__post_init__ = __post_init__  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        """Check nothing more."""


def convert_paths(config: Config) -> None:
    """Give every field of a dataclass that is annotated as a path, or as several values, that type.

    Raises:
        ConfigError: lists every field whose value cannot be one.
    """
    problems = []
    for name, hint in _hints(type(config)).items():  # type: ignore[arg-type]
        value = getattr(config, name)
        if not _is_convertible(value, hint):
            continue
        try:
            object.__setattr__(config, name, coerce(value, hint))
        except (TypeError, ValueError):
            problems.append(f"{name} must be {describe(hint)}, got {value!r}{_of_places(value, hint)}")
    if problems:
        raise ConfigError(problems)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _is_convertible(value: Any, hint: Any) -> bool:
    """Return whether a field is of paths, or a value is a path or one of several where its annotation says otherwise."""
    if Path in _leaves(hint):
        return True
    given = value if isinstance(value, (list, tuple)) else [value]
    many = any(get_origin(part) is tuple for part in (hint, *get_args(hint)))
    return any(isinstance(item, os.PathLike) for item in given) or (many and isinstance(value, (str, list)))


def _leaves(hint: Any) -> set[Any]:
    parts = get_args(hint)
    return set().union(*map(_leaves, parts)) if parts else {hint}


def config_from(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the config dataclass `cls` from names and values as a YAML file or a command line gives them.

    Raises:
        UsageError: lists unknown names, missing names and wrong types, and refused values with them.
        ConfigError: lists refused values.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    given, problems = typed_values(values, {name: hints[name] for name in fields}, f"{cls.__name__}")
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    named = {plain(name) for name in values}
    missing = sorted(required - named)
    problems += [f"{name} is required" for name in missing]
    if not problems:
        return cls(**given)
    if required <= set(given):
        try:
            cls(**given)
        except ConfigError as refused:
            problems += refused.problems
    raise UsageError(problems)


def bind_options(function: Callable[..., Any], options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return `options` with the types of the keyword-only parameters of `function`.

    Raises:
        ConfigError: lists every unknown name, missing name and wrong type; `what` names the owner, e.g. "head lfa".
    """
    hints = typing.get_type_hints(function)
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    given, problems = typed_values(options, {p.name: hints.get(p.name, Any) for p in keywords}, what)
    named = {plain(name) for name in options}
    absent = [p.name for p in keywords if p.default is p.empty and p.name not in named]
    problems += [f"{what} needs the option {name}" for name in absent]
    if problems:
        raise ConfigError(problems)
    return given


def typed_values(
    values: Mapping[str, Any], hints: Mapping[str, Any], what: str, spelled: Callable[[str], str] = str
) -> tuple[dict[str, Any], list[str]]:
    """Return the values as the types of `hints`, and what is wrong with the others; `spelled` is how users write a name."""
    given: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in values.items():
        key = plain(name)
        key = f"{key}_" if key not in hints and f"{key}_" in hints else key  # `from`, which Python keeps for itself
        if key not in hints:
            known = ", ".join(sorted(hints)) or "none"
            problems.append(f"{what} has no option {name!r}.{nearest(key, list(hints))} Known: {known}")
            continue
        try:
            given[key] = coerce(value, hints[key])
        except (TypeError, ValueError):
            problems.append(
                f"{spelled(name)} must be {describe(hints[key])}, got {value!r}{_of_places(value, hints[key])}"
            )
    return given, problems


def _of_places(value: Any, hint: Any) -> str:
    """Return the way out for who names a place beyond this machine where only its own disks will do."""
    if not is_url(value) or Path not in (hint, *get_args(hint)):
        return ""
    return (
        ", which is not on this machine. Such a place is only read, by verbs that train from a store: rows become real by "
        "fsync, rename and a lock, which it has not. Write on a disk here, copy the finished store there, and check the "
        f"copy: featurecache info {value}"
    )


def describe(hint: Any) -> str:
    """Return a type annotation in words for messages."""
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in get_args(hint))
    if origin is tuple:
        parts = get_args(hint)
        return f"a list of {describe(parts[0])}" if Ellipsis in parts else " and ".join(map(describe, parts))
    if _is_mapping(origin):
        return "names with values"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path", Url: "a URL"}
    return names.get(hint, "nothing" if hint is type(None) else str(getattr(hint, "__name__", hint)))


def coerce(value: Any, hint: Any) -> Any:
    """Return `value` as the annotated type.

    Raises:
        TypeError, ValueError: it cannot be read as that type without loss.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, get_args(hint))
    if origin is Literal:
        return _literal(value, get_args(hint))
    if origin is tuple:
        items, hints = value if isinstance(value, (list, tuple)) else [value], get_args(hint)
        if Ellipsis not in hints:
            if len(items) != len(hints):
                raise ValueError(value)
            return tuple(coerce(item, one) for item, one in zip(items, hints, strict=True))
        return tuple(coerce(item, get_args(hint)[0]) for item in items)
    if _is_mapping(origin):
        return dict(value)
    return _scalar(value, hint)


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _first_that_fits(value: Any, hints: tuple[Any, ...]) -> Any:
    if value is None and type(None) in hints:
        return None
    for hint in hints:
        if hint is type(None):
            continue
        try:
            return coerce(value, hint)
        except (TypeError, ValueError):
            continue
    raise TypeError(value)


def _literal(value: Any, allowed: tuple[Any, ...]) -> Any:
    for choice in allowed:
        if value == choice or (isinstance(value, str) and plain(value) == plain(str(choice))):
            return choice
    raise ValueError(value)


def _scalar(value: Any, hint: Any) -> Any:
    if hint is bool:
        if isinstance(value, str) and value.lower() in ("true", "yes", "on", "false", "no", "off"):
            return value.lower() in ("true", "yes", "on")
        if isinstance(value, bool):
            return value
        raise TypeError(value)
    if isinstance(value, bool) or value is None:
        raise TypeError(value)
    if hint is Path and is_url(value):  # a Path would swallow a slash and name a folder here
        raise ValueError(value)
    if hint is int and isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    if hint is float and not math.isfinite(float(value)):
        raise ValueError(value)
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if hint is str and not isinstance(value, (str, int, float)):
        raise TypeError(value)
    return hint(value)
