"""Tuning online: every setting is trained on the training split and judged on validation, the best one on both, tested once.

A cell is a run of its own, in `cells/<setting>/`, trained as the same command without --sweep would: its seed is that of the
config, so neither the order of the cells nor a restart moves it. None of them reads the test split. The final runs, one a
seed, stand in `final/` and can be predicted with; what was judged is the last epoch, for it is what training on both keeps.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.checks import bind_options, check, coerce
from featurecache.errors import ConfigError, RunError
from featurecache.metrics import primary
from featurecache.peft import PEFT
from featurecache.progress import Bar, Stopwatch
from featurecache.registry import nearest, plain
from featurecache.runs import is_done, read_run, write_record
from heads import HEADS
from pipelines.online.reporting import SweepReport
from pipelines.online.settings import OPTIONS, TrainOnlineConfig
from pipelines.training.cells import words_of
from pipelines.training.jobs import done

SWEPT: Mapping[str, type] = {
    "rate": float, "lr": float, "backbone_lr": float, "weight_decay": float, "drop_path": float, "seed": int,
}  # fmt: skip
ALIASES = {"wd": "weight_decay"}

Named = Mapping[str, Any]
"""Name of an axis -> value of a cell."""


def sweep(
    config: TrainOnlineConfig, train: Callable[[TrainOnlineConfig], Any], wanted: Mapping[str, Any]
) -> SweepReport:
    """Train every cell that is not there, choose, train the chosen setting on both splits and test it.

    Raises:
        ConfigError: lists every name and value of the sweep that means nothing.
        RunError: `out` holds something else, or every setting diverged.
    """
    axes = axes_of(config)
    check((int(os.environ.get("WORLD_SIZE", "1")) == 1, "a sweep trains in one process: start its cells apart"))
    if is_done(config.out, wanted):
        return SweepReport(config.out, read_run(config.out)[1], repeated=True)
    cells = list(_cells(axes))
    judged = [of_cell(config, named, config.out / "cells" / _folder(named), test=False) for named in cells]
    _train_all(partial(_trained, train=train), judged, config)
    metric, settings = _judged(config, cells)
    final = [dict(settings[0]["setting"], **({"seed": s} if s is not None else {})) for s in axes.get("seed", [None])]
    places = [config.out / "final" / (f"seed={named['seed']}" if "seed" in named else "run") for named in final]
    whole = replace(config, train_on="train+val")
    tested = [of_cell(whole, named, place, test=config.test) for named, place in zip(final, places, strict=True)]
    _train_all(train, tested, config)
    runs = [{"run": str(place.relative_to(config.out)), **_test_of(read_run(place)[1], metric)} for place in places]
    splits = read_run(places[0])[1].get("splits")
    record = {
        "metric": metric, "settings": settings, "final": runs, "remark": remark_on(config),
        **({"splits": splits} if splits else {}),
    }  # fmt: skip
    write_record(config.out, record)
    return SweepReport(config.out, record)


def remark_on(config: TrainOnlineConfig) -> str:
    """Return what must be said of the recipe of a run, or ""."""
    if not config.recipe:
        return ""
    from pipelines.recipes import recipe

    return recipe(config.recipe, TrainOnlineConfig).warning


def axes_of(config: TrainOnlineConfig) -> dict[str, list[Any]]:
    """Return name -> values of every axis.

    Raises:
        ConfigError: lists every name and value that means nothing.
    """
    found: dict[str, list[Any]] = {}
    problems: list[str] = []
    for given, words in config.sweep.items():
        try:
            name = _axis(config, ALIASES.get(given, given))
            found[name] = [_typed(config, name, value) for value in words_of(words)]
        except ConfigError as refused:
            problems += [f"sweep {given}={words}: {problem}" for problem in refused.problems]
        except (TypeError, ValueError) as refused:
            problems.append(f"sweep {given}={words}: {refused}")
        else:
            if len(set(map(str, found[name]))) < len(found[name]):
                problems.append(f"sweep {given}={words}: a value is there twice")
    if "rate" in found and {"lr", "backbone_lr"} & found.keys():
        problems.append("sweep rate is lr and backbone_lr at once: leave one out")
    check(*((False, problem) for problem in problems))
    for named in _cells(found):
        of_cell(config, named, config.out, test=False)  # refuses values that the config would
    return found


def _axis(config: TrainOnlineConfig, name: str) -> str:
    """Return the full name of an axis: an option may be named alone where only the method, or only the head, has it."""
    owners = {
        "peft": list(PEFT.load(config.peft).apply.__kwdefaults__ or {}),
        "head": list(HEADS.load(config.head).build.__kwdefaults__ or {}),
    }  # fmt: skip
    kind, _, option = plain(name).partition(".")
    if plain(name) in SWEPT:
        return plain(name)
    if kind in owners and option in owners[kind]:
        return f"{kind}.{option}"
    having = [kind for kind, options in owners.items() if plain(name) in options]
    if len(having) == 1:
        return f"{having[0]}.{plain(name)}"
    known = [*SWEPT, *(f"{kind}.{option}" for kind, options in owners.items() for option in options)]
    both = (
        "both method and head have it: say peft. or head. before it" if having else "there is no such setting to sweep."
    )
    raise ConfigError([f"{both}{'' if having else nearest(name, known)} Known: {', '.join(known)}"])


def _typed(config: TrainOnlineConfig, name: str, value: Any) -> Any:
    if name in SWEPT:
        return coerce(value, SWEPT[name])
    kind, _, option = name.partition(".")
    function = PEFT.load(config.peft).apply if kind == "peft" else HEADS.load(config.head).build
    return bind_options(function, {option: value}, f"{kind} {config.peft if kind == 'peft' else config.head}")[option]


def _cells(axes: Mapping[str, Sequence[Any]]) -> Iterator[Named]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def of_cell(config: TrainOnlineConfig, named: Named, out: Path, *, test: bool) -> TrainOnlineConfig:
    """Return the config of one cell."""
    changes: dict[str, Any] = {name: value for name, value in named.items() if name in SWEPT and name != "rate"}
    if "rate" in named:
        learns = bool(PEFT.load(config.peft).LEARNING_RATE)
        changes |= {"lr": named["rate"], **({"backbone_lr": named["rate"]} if learns else {})}
    for field, kind in OPTIONS:
        own = {name.partition(".")[2]: value for name, value in named.items() if name.startswith(f"{kind}.")}
        if own:
            changes[field] = {**getattr(config, field), **own}
    return replace(config, **changes, out=out, sweep={}, jobs=1, test=test)


def _folder(named: Named) -> str:
    words = ",".join(f"{name}={value}" for name, value in named.items())
    return re.sub(r"[^\w.,=+-]", "_", words) or "one"


def _train_all(
    train: Callable[[TrainOnlineConfig], Any], cells: Sequence[TrainOnlineConfig], config: TrainOnlineConfig
) -> None:
    """Train every cell that is not there; where several are at it at once, what is shown is how many are done."""
    together, watch = config.jobs > 1, Stopwatch()
    cells = [replace(cell, quiet=cell.quiet or together) for cell in cells]
    with Bar("cells", len(cells), 0, config.quiet or not together, unit="cells") as bar:
        for _ in done(train, cells, config.jobs):
            bar.advance(1, watch)


def _trained(config: TrainOnlineConfig, train: Callable[[TrainOnlineConfig], Any]) -> None:
    """Train a cell; one that diverges is a cell that was judged."""
    diverged = config.out / "diverged.txt"
    if diverged.exists():
        return
    try:
        train(config)
    except RunError as error:
        if "ceased to be a number" not in str(error):
            raise
        config.out.mkdir(parents=True, exist_ok=True)
        diverged.write_text(str(error), encoding="utf-8")


def _judged(config: TrainOnlineConfig, cells: Sequence[Named]) -> tuple[str, list[dict[str, Any]]]:
    """Return (metric, settings with their mean over seeds on validation after the last epoch, the best first).

    Raises:
        RunError: every setting diverged, or there are no validation rows to choose on.
    """
    values: dict[str, list[float | None]] = {}
    settings: dict[str, Named] = {}
    metric = "top1"
    for named in cells:
        place = config.out / "cells" / _folder(named)
        setting = {name: value for name, value in named.items() if name != "seed"}
        key = json.dumps(setting, default=str)
        settings[key] = setting
        if (place / "diverged.txt").exists():
            values.setdefault(key, []).append(None)
            continue
        metric = primary(read_run(place)[1]["task"])
        lines = [json.loads(line) for line in (place / "history.jsonl").read_text(encoding="utf-8").splitlines()]
        last = lines[-1].get(f"val_{metric}") if lines else None
        if last is None and len(cells) > 1:
            raise RunError(
                "a sweep chooses on validation rows, and there are none. Give the data a val split, or one setting."
            )
        values.setdefault(key, []).append(last)
    found = [
        {"setting": settings[key], "val": None if None in seen else float(np.mean([v for v in seen if v is not None]))}
        for key, seen in values.items()
    ]  # fmt: skip
    if len(cells) > 1 and all(one["val"] is None for one in found):
        raise RunError("the loss ceased to be a number in every cell of the sweep. Give lower rates.")
    return metric, sorted(found, key=lambda one: -np.inf if one["val"] is None else one["val"], reverse=True)


def _test_of(record: Mapping[str, Any], metric: str) -> dict[str, float | None]:
    """Return the test value of a run with the ends of its interval; None where it was not tested."""
    found = record["metrics"].get("test", {}).get(metric, {})
    return {"test": found.get("value"), "low": found.get("low"), "high": found.get("high")}
