"""Verbs of the command line as functions: `train_head("photos.zarr", head="ridge", out="runs/x")` for `train-head`.

A function is made from the verb's Config, as the verb's options are: names, defaults and help are one and the same.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from featurecache.checks import config_from
from featurecache.errors import UnknownNameError
from featurecache.places import Place
from featurecache.registry import nearest, plain
from featurecache.shadowing import qualify_name

RENAMED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "check_data": ("data", {"what": "check"}),
    "find_leaks": ("leaks", {}),
    "rank_layers": ("logme", {}),
    "split_store": ("split", {}),
}
"""Function -> (verb, values that are always given), where the verb's own name would be none of a function."""


def make_function(name: str) -> Callable[..., Any]:
    """Return the function called `name`; imports the verb's module.

    Raises:
        UnknownNameError: there is no such verb.
    """
    cli = importlib.import_module(qualify_name("cli"))
    verb, fixed = RENAMED.get(name, (name.replace("_", "-"), {}))
    if verb not in cli.VERBS:
        raise UnknownNameError(f"there is no verb {verb!r}.{nearest(verb, list(cli.VERBS))}")
    place, summary = cli.VERBS[verb][:2]
    module_name, config_name, act_name = f"{place}:run".split(":")[:3]
    module = importlib.import_module(qualify_name(module_name))
    config, act = getattr(module, config_name), getattr(module, act_name)
    signature = _signature(config, fixed)

    def function(*args: Any, **kwargs: Any) -> Any:
        known = {plain(key): value for key, value in kwargs.items()}
        given = {**fixed, **signature.bind_partial(*args).arguments}
        if twice := given.keys() & known.keys():
            raise TypeError(f"{name}() got {', '.join(sorted(twice))} twice")
        return act(config_from(config, getattr(config, "expanded", dict)({**given, **known})))

    function.__name__ = function.__qualname__ = name
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__doc__ = _docstring(config, _field_texts(config), signature, verb, summary)
    function.__module__ = "featurecache"
    return function


def _signature(config: Any, fixed: Mapping[str, Any]) -> inspect.Signature:
    """Return what the function takes: by place or name what must be given, but where to write, and by name all else."""
    hints = typing.get_type_hints(config)
    fields = [field for field in dataclasses.fields(config) if field.name not in fixed]
    empty, by_place, by_name = (
        inspect.Parameter.empty,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    parameters = []
    for field in fields:
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        parameters.append(
            inspect.Parameter(
                field.name,
                by_place if default is dataclasses.MISSING and field.name != "out" else by_name,
                default=empty if default is dataclasses.MISSING else default,
                annotation=str | Path if hints[field.name] in (Path, Place) else hints[field.name],
            )
        )
    parameters.sort(key=lambda parameter: (parameter.kind, parameter.default is not empty))
    return inspect.Signature(parameters)


def _field_texts(config: Any) -> dict[str, str]:
    """Return field name -> the docstring below the field, in the class or in one that it extends."""
    found: dict[str, str] = {}
    classes: list[Any] = [base for base in config.__mro__ if dataclasses.is_dataclass(base)]
    for one in reversed(classes):
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = str(ast.literal_eval(text.value))
    return found


def _docstring(config: Any, texts: Mapping[str, str], signature: inspect.Signature, verb: str, summary: str) -> str:
    lines = [inspect.getdoc(config) or summary, "", f"As `featurecache {verb}`.", "", "Args:"]
    for name in signature.parameters:
        lines.append(f"    {name}: {' '.join(texts.get(name, '').split())}")
    lines += [
        "", "Returns:", "    What the command prints: `tables()` for people, `json()` for programs, `to_pandas()`.",
        "", "Raises:", "    FeatureCacheError: what cannot be done, with the reason and the way out; of arguments all problems at once.",
    ]  # fmt: skip
    return "\n".join(lines)
