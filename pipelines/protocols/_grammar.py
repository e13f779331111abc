"""One grammar for every protocol: NAME, NAME:ARGUMENT, NAME:ARGUMENT?key=value&key=value; commas part several values."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, get_origin

from featurecache.checks import bind_options, check
from featurecache.errors import ConfigError
from featurecache.registry import Registry
from featurecache.stores import FeatureStore
from pipelines.protocols._trials import Plan

PROTOCOLS = Registry("protocol", "pipelines.protocols")

NEVER = "selection never sees test rows: what is chosen on them is no measurement of anything new"


@dataclass(frozen=True, slots=True)
class Asked:
    """A protocol with its options."""

    name: str
    module: ModuleType
    options: Mapping[str, Any]
    """Of every keyword of `plan`, typed."""

    @property
    def full(self) -> str:
        """The name that results carry; it says all that was resolved, and parses to the same protocol."""
        key = getattr(self.module, "ARGUMENT", None)
        argument = f":{_said(self.options[key])}" if key else ""
        others = {name: value for name, value in self.options.items() if name != key and value is not None}
        tail = "&".join(f"{name}={_said(value)}" for name, value in others.items())
        return f"{self.name}{argument}" + (f"?{tail}" if tail else "")

    @property
    def together(self) -> bool:
        """Whether the protocol takes all stores at once."""
        return bool(getattr(self.module, "TOGETHER", False))

    @property
    def measures_split(self) -> bool:
        """Whether the protocol measures a split of the rows, and draws its tests from no others."""
        return getattr(self.module, "MEASURES", "split") == "split" and self.options.get("folds") is None

    def plan(self, stores: Sequence[FeatureStore]) -> Plan:
        """Return the trials on one store, or on several where they belong `together`.

        Raises:
            ConfigError, StoreContentsError: the rows do not allow the protocol; says why, and the way out.
        """
        found: Plan = self.module.plan(stores, **self.options)
        return found


def parse(text: str) -> Asked:
    """Return the protocol that `text` names.

    Raises:
        UnknownNameError: there is no such protocol.
        ConfigError: lists everything that is wrong with its argument and options.
    """
    head, _, tail = text.partition("?")
    name, colon, argument = head.partition(":")
    module = PROTOCOLS.load(name.strip())
    given, problems = _options(tail)
    key = getattr(module, "ARGUMENT", None)
    if given.get("select") == "test":
        problems.append(f"{text}: {NEVER}. Leave select out, or name a rule that reads validation rows")
        del given["select"]
    if colon and not key:
        problems.append(f"{name} takes no argument, got {argument!r}")
    elif key and colon:
        given[key] = argument
    plain = name.strip().replace("_", "-")
    try:
        bound = bind_options(module.plan, _parted(module, given), f"protocol {plain}")
    except ConfigError as refused:
        problems += refused.problems
    check(*((False, problem) for problem in problems))
    defaults = {
        p.name: p.default for p in inspect.signature(module.plan).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    return Asked(plain, module, {**defaults, **bound})


def _options(tail: str) -> tuple[dict[str, str], list[str]]:
    given: dict[str, str] = {}
    problems: list[str] = []
    for word in filter(None, tail.split("&")):
        name, sign, value = word.partition("=")
        if not sign or not value or name in given:
            problems.append(
                f"{word!r} is not key=value, or is there twice. The form is NAME:ARGUMENT?key=value&key=value"
            )
        given[name] = value
    return given, problems


def _parted(module: ModuleType, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the values with those of options that take several parted at their commas."""
    hints = typing.get_type_hints(module.plan)
    many = {name for name, hint in hints.items() if get_origin(hint) is tuple}
    return {name: value.split(",") if name.replace("-", "_") in many else value for name, value in given.items()}


def _said(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
