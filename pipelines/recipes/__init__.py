"""Settings that papers trained with, by name: `FILE/ROW`, of the YAML files in this folder or of one's own file.

A file has `paper`, `source` (where the values are written down), `tuned` (on what they were chosen), `differs` (what
the papers' code did and ours does not), `common` settings and `rows` of settings by name. A setting is one of
`train-online`, or `rate`, which is `lr` and `backbone_lr` at once. Of `rate, lr, backbone_lr, weight_decay, drop_path, seed`
and of the options of method and head a list is an axis of a grid; a scalar is fixed.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from featurecache.checks import bind_options, check, coerce, describe
from featurecache.errors import ConfigError, FeatureCacheError, UnknownNameError
from featurecache.peft import PEFT
from featurecache.registry import nearest, plain
from heads import HEADS

FOLDER = Path(__file__).parent
Tuned = Literal["validation", "test", "target", "unknown"]
"""On what the values of a file were chosen; `target` is the very data on which the papers then measured."""

AXES = ("rate", "lr", "backbone_lr", "weight_decay", "drop_path", "seed")
OPTIONS = {"peft_option": "peft", "head_option": "head"}
"""Options whose lists are axes -> what names of such axes begin with."""
NEVER = ("data", "out", "recipe", "sweep", "quiet", "threads", "init_from", "load_published", "device")
"""Settings of a run that no recipe says."""
WARNINGS = {
    "target": "was tuned on the target that its paper measures, so its numbers are no measure of generalisation",
    "test": "was tuned on the test images of its paper",
    "unknown": "was tuned in a way that its paper does not say; it may have seen test images",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One row, with what its file says of all."""

    name: str
    paper: str
    source: str
    tuned: Tuned
    differs: tuple[str, ...]
    settings: Mapping[str, Any]
    """Fixed ones, by the names of `train-online`."""
    axes: Mapping[str, list[Any]]
    """What is a grid, by the names of its sweep."""

    @property
    def warning(self) -> str:
        """Return what must be said of runs with it, or ""."""
        return f"the recipe {self.name} {WARNINGS[self.tuned]}" if self.tuned in WARNINGS else ""

    @property
    def cells(self) -> int:
        """Return how many settings its grid has."""
        count = 1
        for values in self.axes.values():
            count *= len(values)
        return count


def names() -> list[str]:
    """Return FILE/ROW of every recipe of the package."""
    return [f"{path.stem}/{row}" for path in sorted(FOLDER.glob("*.yaml")) for row in _read(path)["rows"]]


def recipe(name: str, config: type) -> Recipe:
    """Return the recipe called FILE/ROW, where FILE is of this package or a path that ends with .yaml.

    Its settings are fields of the dataclass `config`.

    Raises:
        UnknownNameError: there is no such file or row; names the nearest.
        ConfigError: lists everything in the file and the row that means nothing.
    """
    file, row = _split(name)
    path = Path(file) if file.endswith((".yaml", ".yml")) else FOLDER / f"{file.replace('_', '-')}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
        raise UnknownNameError(
            f"there is no recipe file {file!r}.{nearest(file, known)} Known: {', '.join(known)}; or a path to a .yaml of your own."
        )
    content = _read(path)
    rows = {plain(key): key for key in content["rows"]}
    if plain(row) not in rows:
        raise UnknownNameError(
            f"{file} has no row {row!r}.{nearest(row, list(content['rows']))} Known: {', '.join(content['rows'])}."
        )
    return _made(f"{file}/{rows[plain(row)]}", content, rows[plain(row)], _hints(config))


def _split(name: str) -> tuple[str, str]:
    file, sign, row = name.rpartition("/")
    if row.endswith((".yaml", ".yml")) or not sign:
        raise UnknownNameError(f"a recipe is FILE/ROW, got {name!r}. See featurecache list recipes.")
    return file, row


def _read(path: Path) -> dict[str, Any]:
    """Return a file whose frame is right.

    Raises:
        ConfigError: lists what is wrong with the frame.
    """
    try:
        content = _parsed(path, path.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError([f"{path} cannot be read as YAML: {str(error).splitlines()[0]}"]) from error
    known = {"paper": str, "source": str, "tuned": str, "differs": list, "common": dict, "rows": dict}
    content = content if isinstance(content, dict) else {}
    problems = [
        f"{path.name} has a key {key!r}.{nearest(str(key), list(known))} Known: {', '.join(known)}"
        for key in content
        if key not in known
    ]
    problems += [f"{path.name} lacks {key}" for key in ("paper", "tuned", "rows") if key not in content]
    problems += [
        f"{path.name}: {key} must be {'text' if kind is str else 'a list' if kind is list else 'names with values'}"
        for key, kind in known.items() if key in content and not isinstance(content[key], kind)
    ]  # fmt: skip
    if content.get("tuned") not in (None, *get_args(Tuned)):
        problems.append(f"{path.name}: tuned must be one of {', '.join(get_args(Tuned))}, got {content['tuned']!r}")
    check(*((False, problem) for problem in problems))
    return {"source": "", "differs": [], "common": {}, **content}


@lru_cache(maxsize=64)
def _parsed(path: Path, changed: int) -> Any:
    """Return what a file holds; parsed again when it has changed."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _made(name: str, content: Mapping[str, Any], row: str, hints: Mapping[str, Any]) -> Recipe:
    own = content["rows"][row] or {}
    if not isinstance(own, dict):
        raise ConfigError([f"the recipe {name} must be names with values, got {own!r}"])
    merged: dict[str, Any] = {**content["common"]}
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    merged = {plain(key): value for key, value in merged.items()}
    settings, axes = dict[str, Any](), dict[str, list[Any]]()
    problems = [f"the recipe {name}: {problem}" for problem in _sorted(hints, merged, settings, axes)]
    check(*((False, problem) for problem in problems))
    return Recipe(
        name=name, paper=content["paper"], source=content["source"], tuned=content["tuned"],
        differs=tuple(content["differs"]), settings=settings, axes=axes,
    )  # fmt: skip


def _sorted(
    hints: Mapping[str, Any], merged: Mapping[str, Any], settings: dict[str, Any], axes: dict[str, list[Any]]
) -> Iterator[str]:
    """Put every setting of a row where it belongs, with its type; yield what is wrong."""
    for key, value in merged.items():
        if key in OPTIONS and isinstance(value, dict):
            yield from _options(key, merged, value, settings, axes)
        elif key not in hints:
            yield f"there is no setting {key!r}.{nearest(key, list(hints))} Known: {', '.join(sorted(hints))}"
        else:
            many = key in AXES and isinstance(value, list)
            try:
                typed = [coerce(one, hints[key]) for one in (value if many else [value])]
            except (TypeError, ValueError):
                yield f"{key} must be {describe(hints[key])}{' or a list of such' if key in AXES else ''}, got {value!r}"
                continue
            if many:
                axes[key] = typed
            else:
                settings[key] = typed[0]


def _options(
    key: str, merged: Mapping[str, Any], given: Mapping[str, Any], settings: dict[str, Any], axes: dict[str, list[Any]]
) -> Iterator[str]:
    """Put options of the method or the head where they belong; yield what is wrong with them."""
    kind = OPTIONS[key]
    owner = str(merged.get(kind, "none" if kind == "peft" else "linear"))
    try:
        function = PEFT.load(owner).apply if kind == "peft" else HEADS.load(owner).build
    except UnknownNameError as unknown:
        yield str(unknown)
        return
    for option, value in given.items():
        many = isinstance(value, list)
        try:
            typed = [
                bind_options(function, {option: one}, f"{kind} {owner}")[plain(option)]
                for one in (value if many else [value])
            ]
        except FeatureCacheError as refused:
            yield str(refused)
            continue
        if many:
            axes[f"{kind}.{plain(option)}"] = typed
        else:
            settings.setdefault(key, {})[plain(option)] = typed[0]


def _hints(config: type) -> dict[str, Any]:
    found = typing.get_type_hints(config)
    own = {field.name: found[field.name] for field in fields(config) if field.name not in NEVER}
    return {**own, "rate": float}
