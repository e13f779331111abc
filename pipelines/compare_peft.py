"""The verb `compare-peft`: methods that train a backbone side by side, on the same images with the same seeds and the same head.

A cell is one method on one data set with one seed, a run of train-online of its own in `cells/DATA/METHOD/seed=N/`: a command
that was stopped goes on cell by cell, and any cell can be predicted with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurecache.backbones import load_backbone
from featurecache.checks import bind_options, check, config_from
from featurecache.datasets import RowTable
from featurecache.devices import environment
from featurecache.errors import ConfigError, FeatureCacheError
from featurecache.files import json_bytes, write_atomic
from featurecache.peft import PEFT, methods_for
from featurecache.progress import Bar, Stopwatch
from featurecache.registry import plain
from featurecache.runs import RECORD, is_done, read_run, recorded_data, write_record
from featurecache.threads import Computing, heeds_threads
from pipelines.online.comparing import lines_of
from pipelines.online.planning import backbone_options, dataset_of, planned
from pipelines.online.reporting import BASELINE, CompareReport
from pipelines.online.settings import TrainOnlineConfig
from pipelines.train_online import run as train
from pipelines.training.jobs import done
from pipelines.training.selection import as_csv

FIXED = {"data", "out", "peft", "peft_option", "sweep", "recipe", "seed", "data_seed"}
"""Settings that the command itself says."""


@dataclass(frozen=True, kw_only=True)
class ComparePeftConfig(Computing):
    """Train the same head with every method of training a backbone, several times, and say what each brings and costs."""

    data: tuple[str, ...]
    """Data sets, as train-online takes them."""
    backbone: str
    """Backbone, as train-online takes it."""
    out: Path
    """Folder to write; a stopped command goes on cell by cell."""
    methods: tuple[str, ...] = ("all",)
    """Methods, separated by commas; all: every one that the backbone can take; linear is always among them."""
    option: Mapping[str, Any] = field(default_factory=dict)
    """Option of a method, METHOD.NAME=VALUE, e.g. lora.rank=4; may be given several times."""
    seeds: str = "0,1,2"
    """Seeds of start, order and dropout, separated by commas; one run of each method for each."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    """Setting of train-online for all runs, NAME=VALUE, e.g. epochs=5, or head_option.start=ridge; may be given several times."""
    test_split: str | None = None
    """Split to measure on, e.g. val: rows to choose on are then held out of train; default: test, or val where there is no test."""
    weights: str | None = None
    """Weights file (.safetensors, or a state dict), or random:SEED, instead of a download."""
    image_size: int | None = None
    """Side of the input in pixels; default: the model's own."""
    device: str = "cpu"
    """Device to train on: cpu, cuda, cuda:1, auto."""
    jobs: int = 1
    """Cells that train at once, each in a process with its share of the cores, or all on one GPU; times of steps are then of that."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        check(
            (len(self.data) > 0, "name at least one data set"),
            (len(set(self.data)) == len(self.data), "a data set is named twice"),
            (
                all(word.strip().isdigit() for word in self.seeds.split(",")),
                f"seeds must be whole numbers with commas between them, got {self.seeds!r}",
            ),
            (self.jobs > 0, f"jobs must be positive, got {self.jobs}"),
            (len({*self.seeds.split(",")}) == len(self.seeds.split(",")), f"a seed is there twice: {self.seeds}"),
        )

    @property
    def numbers(self) -> list[int]:
        """The seeds, one by one."""
        return [int(word) for word in self.seeds.split(",")]


@dataclass(frozen=True, slots=True)
class Cell:
    """One method on one data set with one seed."""

    title: str
    method: str
    seed: int
    config: TrainOnlineConfig


@heeds_threads
def run(config: ComparePeftConfig) -> CompareReport:
    """Train every cell that is not there, and compare; a comparison that is there may grow by methods and seeds.

    Raises:
        FeatureCacheError: refused before anything is trained, all problems at once; or what a cell met.
    """
    cells, remarks = cells_of(config)
    wanted = {
        "backbone": config.backbone, "data": recorded_data(config.out, config.data), "option": dict(config.option),
        "setting": dict(config.setting), "weights": config.weights, "image_size": config.image_size,
        **({"test_split": config.test_split} if config.test_split else {}),
    }  # fmt: skip
    _check([cell for cell in cells if cell.seed == config.numbers[0] and not _is_there(cell)])
    moved = wanted["data"] != list(config.data)  # then the cells say whether it is the same
    if is_done(config.out, wanted) and not moved:
        record = read_run(config.out)[1]
        if record["asked"] == _asked(cells):
            return CompareReport(config.out, record, repeated=True)
    watch = Stopwatch()
    there = {cell.config.out for cell in cells if _is_there(cell)}
    with Bar("methods", len(cells), len(there), config.quiet, unit="runs") as bar:
        for one in done(train, [cell.config for cell in cells], config.jobs):
            bar.advance(one.out not in there, watch)
    return _compared(config, cells, remarks, watch.elapsed)


def cells_of(config: ComparePeftConfig) -> tuple[list[Cell], list[str]]:
    """Return every cell, in the order of training, and what is to be said of methods that are left out.

    Raises:
        ConfigError: lists every method, option and setting that cannot be had.
        FeatureCacheError: a data set or backbone that cannot be opened.
    """
    common = {
        "backbone": config.backbone, "weights": config.weights, "image_size": config.image_size, "device": config.device,
        "threads": config.threads,
        "test_split": config.test_split,
        **_nested(config.setting),
    }  # fmt: skip
    fixed = FIXED & {plain(name.partition(".")[0]) for name in config.setting}
    check(*((False, f"setting {name} is what the command itself says") for name in sorted(fixed)))
    first = _config(common, config.data[0], config.out, BASELINE, {}, config.numbers[0])
    backbone = load_backbone(config.backbone, backbone_options(first))
    able = methods_for(backbone.module)
    asked = [plain(word.strip()) for text in config.methods for word in text.split(",") if word.strip()]
    everything = "all" in asked
    named = able if everything else [PEFT.load(name).__name__.rpartition(".")[2] for name in asked]
    methods = list(dict.fromkeys([BASELINE, *(name for name in named if name != "none" or not everything)]))
    left = [name for name in PEFT.names() if name not in able] if everything else []
    options, problems = _options(config, methods)
    problems += [
        f"{config.backbone} cannot take the method {name}. It can take: {', '.join(able)}"
        for name in methods
        if name not in able
    ]
    check(*((False, problem) for problem in problems))
    cells = []
    for data, title in zip(config.data, _titles(config.data), strict=True):
        for seed in config.numbers:
            for method in methods:
                place = config.out / "cells" / title / method / f"seed={seed}"
                cells.append(
                    Cell(title, method, seed, _config(common, data, place, method, options.get(method, {}), seed))
                )
    remarks = [f"{config.backbone} cannot take {', '.join(left)}"] if left else []
    return cells, remarks


def _config(
    common: Mapping[str, Any], data: str, out: Path, method: str, options: Mapping[str, Any], seed: int
) -> TrainOnlineConfig:
    given = {k: v for k, v in common.items() if not (method == BASELINE and plain(k) in ("drop_path", "backbone_lr"))}
    return config_from(TrainOnlineConfig, {
        **given, "data": data, "out": out, "peft": method, "peft_option": options, "seed": seed, "data_seed": seed,
        "quiet": True,
    })  # fmt: skip


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those whose names have a dot, head_option.start, as entries of one mapping."""
    found: dict[str, Any] = {}
    for given, value in settings.items():
        name, dot, entry = given.partition(".")
        if dot:
            found.setdefault(plain(name), {})[entry] = value
        else:
            found[given] = value
    return found


def _options(config: ComparePeftConfig, methods: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return (method -> its options, what is wrong with them)."""
    found: dict[str, dict[str, Any]] = {}
    problems = []
    for given, value in config.option.items():
        method, sign, name = plain(given).partition(".")
        if not sign or method not in methods:
            problems.append(f"option {given}: say METHOD.NAME, with a method among {', '.join(methods)}")
            continue
        try:
            found.setdefault(method, {}).update(
                bind_options(PEFT.load(method).apply, {name: value}, f"method {method}")
            )
        except ConfigError as refused:
            problems += refused.problems
    return found, problems


def _titles(data: Sequence[str]) -> list[str]:
    """Return a short name of every data set, each another, good as a folder."""
    stems = [re.sub(r"[^\w-]", "_", Path(text.partition("?")[0]).stem) or "data" for text in data]
    return [stem if stems.count(stem) == 1 else f"{stem}-{number + 1}" for number, stem in enumerate(stems)]


def _asked(cells: Sequence[Cell]) -> dict[str, Any]:
    return {
        "methods": list(dict.fromkeys(cell.method for cell in cells)),
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
    }


def _is_there(cell: Cell) -> bool:
    return (cell.config.out / RECORD).exists()


def _check(cells: Sequence[Cell]) -> None:
    """Refuse, before the first hour of training, what a later cell would be refused for."""
    problems: list[str] = []
    for cell in cells:
        try:
            planned(cell.config)
        except ConfigError as refused:
            problems += [f"{cell.title}, {cell.method}: {problem}" for problem in refused.problems]
        except FeatureCacheError as refused:
            problems.append(f"{cell.title}, {cell.method}: {refused}")
    check(*((False, problem) for problem in dict.fromkeys(problems)))


def _is_below(line: Mapping[str, Any]) -> bool:
    return line["difference_high"] is not None and line["difference_high"] < 0


def _compared(config: ComparePeftConfig, cells: Sequence[Cell], remarks: list[str], seconds: float) -> CompareReport:
    runs: dict[tuple[str, str], list[tuple[Path, Mapping[str, Any]]]] = {}
    opened: dict[str, RowTable] = {}
    for cell in cells:
        runs.setdefault((cell.title, cell.method), []).append((cell.config.out, read_run(cell.config.out)[1]))
        if cell.title not in opened:
            opened[cell.title] = dataset_of(cell.config).table
    lines, metrics = lines_of(runs, opened, BASELINE)
    below = [
        f"{line['method']} on {line['data']}{'' if _is_below(line) else ' (its interval includes 0)'}"
        for line in lines
        if line["difference"] < 0
    ]
    every = [record for found in runs.values() for _, record in found]
    remarks = [*remarks, *dict.fromkeys(record["splits"]["remark"] for record in every if "splits" in record)]
    if any("test" not in record["metrics"] for record in every):
        remarks.append("no test rows: these are the values of val, on which the epochs were chosen, so they flatter")
    remarks = [*remarks, *([f"below {BASELINE}: {', '.join(below)}"] if below else [])]
    files = ["results.csv", "results.json"]
    write_atomic(config.out / files[0], as_csv(lines))
    write_atomic(config.out / files[1], json_bytes(lines))
    record = {
        "asked": _asked(cells), "lines": lines, "metrics": metrics, "remarks": remarks, "files": files, "environment": environment(), "seconds": seconds,
    }  # fmt: skip
    write_record(config.out, record)
    return CompareReport(config.out, record)
