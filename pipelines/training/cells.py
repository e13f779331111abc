"""What is to be trained: one head with its settings, or every cell of a sweep."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurecache.checks import check, coerce
from featurecache.errors import ConfigError
from featurecache.features import Header
from featurecache.registry import nearest
from heads import HEADS
from pipelines._arrays import Combine, RepeatsEmbedding, select_arrays

SWEPT: Mapping[str, type] = {
    "lr": float, "weight_decay": float, "seed": int, "head": str, "layers": str, "tokens": str,
}  # fmt: skip
"""Settings that heads of one read may differ in; options of the head are others."""
ALIASES = {"wd": "weight_decay", "layer": "layers", "token": "tokens"}
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
SPAN = re.compile(rf"(?P<first>{NUMBER})\s*\.\.\s*(?P<last>{NUMBER})(?:\s*/\s*(?P<count>.*))?")
"""FIRST..LAST/COUNT: values of equal ratio; without COUNT, or with another one, it is refused with what to write."""
LIKE_A_SPAN = re.compile(
    rf"{NUMBER}\s*(?:\.\.\.|\.\.|:|;|->|--|to|\s)\s*{NUMBER}\b.*|{NUMBER}\s*\.\.\.?.*|\.\.\.?\s*{NUMBER}.*"
)
"""What people write for a span who know another program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One head to train."""

    head: str
    options: Mapping[str, Any]
    arrays: tuple[str, ...]
    combine: Combine
    lr: float
    weight_decay: float
    seed: int
    named: Mapping[str, Any]
    """What the sweep set, by name; {} of a single head."""
    converge: bool = False
    """Whether the head is solved and not trained by steps; see `HeadSpec.converge`."""

    @property
    def kind(self) -> Hashable:
        """Heads of one kind differ in nothing but their values."""
        return self.head, json.dumps(self.options, sort_keys=True, default=str), self.arrays, self.combine

    @property
    def setting(self) -> tuple[tuple[str, Any], ...]:
        """What the sweep set but the seed: cells that differ in nothing else repeat one setting."""
        return tuple((name, value) for name, value in self.named.items() if name != "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the cells of a sweep share where the sweep says nothing."""

    head: str
    options: Mapping[str, Any]
    layers: str | None
    tokens: str
    lr: float | None
    weight_decay: float
    seed: int


def cells_of(
    settings: Settings, sweep: Mapping[str, Any], header: Header, repeats_embedding: RepeatsEmbedding | None = None
) -> list[Cell]:
    """Return one cell, or all combinations of what the sweep names; `repeats_embedding` as in `select_arrays`.

    Raises:
        ConfigError: lists every name and value of the sweep that means nothing.
        UnknownNameError: there is no such head.
        StoreContentsError: the store lacks what a head is to read.
    """
    values = sweep_values(sweep, header, settings.head)
    return [
        _cell(settings, dict(zip(values, picked, strict=True)), header, repeats_embedding)
        for picked in itertools.product(*values.values())
    ]


def sweep_values(sweep: Mapping[str, Any], header: Header, head: str) -> dict[str, list[Any]]:
    """Return name -> values of every axis of a sweep, as its words name them."""
    found: dict[str, list[Any]] = {}
    problems: list[str] = []
    for given, words in sweep.items():
        name = ALIASES.get(given, given)
        try:
            found[name] = [_typed(name, value) for value in _listed(name, words, header)]
        except (TypeError, ValueError) as refused:
            problems.append(f"sweep {given}={words}: {refused}")
        if name in found and len(set(map(str, found[name]))) < len(found[name]):
            problems.append(f"sweep {given}={words}: a value is there twice")
    heads = found.get("head", [head])
    options = {option for one in heads for option in _options(one)}
    for name in found.keys() - SWEPT.keys() - options:
        near = nearest(name, [*SWEPT, *options])
        known = ", ".join([*SWEPT, *sorted(options)])
        problems.append(f"sweep {name}: neither a setting to sweep nor an option of the head.{near} There are {known}")
    check(*((False, problem) for problem in problems))
    return found


def _options(head: str) -> Sequence[str]:
    return list(HEADS.load(head).build.__kwdefaults__ or {})


def _listed(name: str, words: Any, header: Header) -> list[Any]:
    if words == "each" and name == "layers":
        return [str(layer.index) for layer in header.layers]
    if words == "each" and name == "tokens":
        return list(header.tokens)
    return words_of(words)


def words_of(words: Any) -> list[Any]:
    """Return the values that the words of a sweep name: a list, V1,V2, V1|V2, or FIRST..LAST/COUNT.

    Raises:
        ValueError: no value, or a span that lacks its count, is written otherwise, or cannot be spaced; says what to write.
    """
    if isinstance(words, (list, tuple)):
        found = [value for word in words for value in (_words_of_text(word) if isinstance(word, str) else [word])]
    else:
        found = _words_of_text(words) if isinstance(words, str) else [words]
    if not found or any(value is None or value == "" for value in found):
        raise ValueError("a value is empty: write NAME=V1,V2 or NAME=FIRST..LAST/COUNT")
    return found


def _words_of_text(words: str) -> list[Any]:
    text = words.strip()
    if text[:1] in "[({" and text[-1:] in "])}":
        text = text[1:-1].strip()
    if span := SPAN.fullmatch(text):
        return _spaced(span["first"], span["last"], span["count"])
    if LIKE_A_SPAN.fullmatch(text):
        raise ValueError("a span is written FIRST..LAST/COUNT, such as 1e-4..1e-1/5; single values as V1,V2")
    return [word.strip() for word in text.split("|" if "|" in text else ",")]


def _spaced(first: str, last: str, count: str | None) -> list[float]:
    """Return values of equal ratio from the words of a span.

    Raises:
        ValueError: they do not make one; says what to write.
    """
    if count is None:
        raise ValueError(f"/COUNT is missing, which says how many values there are: write {first}..{last}/5")
    if not count.isdigit():
        raise ValueError(f"COUNT must be a whole number of at least 2, got {count!r}: write {first}..{last}/5")
    return _equal_ratios(float(first), float(last), int(count))


def _equal_ratios(first: float, last: float, count: int) -> list[float]:
    if not (0 < first < math.inf and 0 < last < math.inf and count > 1):
        raise ValueError(
            "FIRST..LAST/COUNT needs two positive numbers and a count of at least 2, since its values have equal ratios"
        )
    return [float(f"{value:.6g}") for value in np.geomspace(first, last, count)]


def _typed(name: str, value: Any) -> Any:
    if name not in SWEPT:
        return _plain(value)
    if name == "lr" and not 0 < float(value) < math.inf:
        raise ValueError("lr must be positive and finite")
    return coerce(value, SWEPT[name])


def _plain(value: Any) -> Any:
    """Return an option as YAML reads it: numbers are numbers."""
    import yaml

    return yaml.safe_load(value) if isinstance(value, str) else value


def _cell(
    settings: Settings, named: Mapping[str, Any], header: Header, repeats_embedding: RepeatsEmbedding | None
) -> Cell:
    head = named.get("head", settings.head)
    room, known = HEADS.load(head), _options(head)
    options = {**settings.options, **{name: value for name, value in named.items() if name in known}}
    layers, tokens = named.get("layers", settings.layers), named.get("tokens", settings.tokens)
    arrays, combine = select_arrays(header, room.CONSUMES, layers, tokens, repeats_embedding)
    return Cell(
        head=head, options=options, arrays=arrays, combine=combine,
        lr=named.get("lr", settings.lr) or room.LEARNING_RATE,
        weight_decay=named.get("weight_decay", settings.weight_decay), seed=named.get("seed", settings.seed),
        named=dict(named),
    )  # fmt: skip


def check_rows_of_options(cells: Sequence[Cell]) -> None:
    """Refuse a sweep of an option that only some of the heads have: the cells of the others would be copies.

    Raises:
        ConfigError: names the option and the heads without it.
    """
    for name in {name for cell in cells for name in cell.named} - SWEPT.keys():
        lacking = sorted({cell.head for cell in cells if name not in _options(cell.head)})
        if lacking:
            raise ConfigError([f"sweep {name}: not an option of {', '.join(lacking)}. Sweep its head alone"])
