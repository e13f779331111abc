"""The verb `analyze`: look into stores and models without training: how alike their layers are, where they look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featurecache.backbones import Backbone, BackboneOptions, load_backbone
from featurecache.checks import bind_options, check
from featurecache.datasets import ImageDataset, open_dataset
from featurecache.devices import resolve_device
from featurecache.errors import ConfigError
from featurecache.files import json_bytes, write_atomic
from featurecache.places import placed
from featurecache.reports import Displayed, Table
from featurecache.runs import RECORD, read_trained
from featurecache.stores import explained, open_store, store_exists
from featurecache.threads import Computing, heeds_threads
from pipelines.analyses import ANALYSES, Analysis, Subject
from pipelines.analyses._subjects import LiveSubject, StoredSubject
from pipelines.predicting.predictor import rebuilt
from pipelines.report import finite, page_of
from pipelines.sections import Page


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig(Computing):
    """Look into stores, trained runs and backbones, without training; writes a page, its values as JSON, and pictures."""

    what: str
    """cka (how alike layers are) or rollout (which patches reach the class token)."""
    inputs: tuple[str, ...]
    """Stores, run folders, or backbones such as timm:NAME; one or several, compared on the same samples."""
    out: Path
    """Folder to write: page.html, values.json, pictures."""
    images: str | None = None
    """Data set that models look at; default: that of the first run that is named."""
    split: str = "test"
    """Split whose samples are looked at; all takes every one."""
    samples: int | None = None
    """How many samples; default: 256 for cka, 8 for rollout, or as many as there are."""
    batch_size: int = 32
    """Samples at once; the estimate of cka is a mean over batches."""
    layers: str = "all"
    """Layers to compare: all, last, or indices such as 0,3,6-11."""
    tokens: str = "auto"
    """Kind of token; auto: all tokens of a model, and what a store holds first."""
    option: Mapping[str, Any] = field(default_factory=dict)
    """Option of the analysis k=v, e.g. of=attention of cka, blocks=0-3 of rollout; may be given several times."""
    weights: tuple[str, ...] = ()
    """Weights file or random:SEED of the backbones, in their order; one for all, or one for each."""
    backbone_option: Mapping[str, Any] = field(default_factory=dict)
    """Architecture argument k=v of the backbones; may be given several times."""
    image_size: int | None = None
    """Side of the input of the backbones in pixels; default: the model's own."""
    device: str = "cpu"
    """Device to run models on: cpu, cuda, cuda:1, auto."""
    precision: Literal["fp32", "bf16", "fp16", "tf32"] = "fp32"
    """Arithmetic of the backbones."""
    seed: int = 0
    """Seed of which samples are looked at, and in which order."""

    def __post_init__(self) -> None:
        check(
            (len(self.inputs) > 0, "name at least one store, run folder or backbone"),
            (self.samples is None or self.samples > 0, f"samples must be positive, got {self.samples}"),
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
        )


@dataclass(frozen=True, slots=True)
class AnalyzeReport(Displayed):
    """What was found, and where it is written."""

    out: Path
    found: Analysis

    def tables(self) -> list[Table]:
        """Return the tables of the page, and where it is."""
        return [*self.found.section.tables, Table("", (), (), (f"{self.out / PAGE}", *map(str, self._files())))]

    def json(self) -> dict[str, Any]:
        """Return all values."""
        return {
            "out": str(self.out),
            "files": [str(path) for path in self._files()],
            **finite(self.found.section.values),
        }

    def _files(self) -> list[Path]:
        return [self.out / name for name in self.found.files]


PAGE, VALUES = "page.html", "values.json"


@heeds_threads
def run(config: AnalyzeConfig) -> AnalyzeReport:
    """Open what is named, look at it, and write what was found.

    Raises:
        UnknownNameError: no such analysis or backbone.
        ConfigError: lists what is wrong with options; no images, or samples that are not in all subjects.
        StoreError, RunError, DatasetError, BackboneError: as what they name.
    """
    analysis = ANALYSES.load(config.what)
    options = bind_options(analysis.analyse, config.option, f"analysis {config.what}")
    with subjects_of(config) as subjects:
        ids = shared(subjects, config.samples or analysis.SAMPLES, config.seed)
        found: Analysis = analysis.analyse(subjects, ids, config.batch_size, **options)
    with explained(f"write {config.out}"):
        config.out.mkdir(parents=True, exist_ok=True)
        for name, content in found.files.items():
            write_atomic(config.out / name, content)
        page = page_of(f"featurecache analyze {config.what}", Page([]), [(config.what, found.section)], [])
        write_atomic(config.out / PAGE, page.encode())
        write_atomic(config.out / VALUES, json_bytes(finite(found.section.values)))
    return AnalyzeReport(config.out, found)


@contextmanager
def subjects_of(config: AnalyzeConfig) -> Iterator[list[Subject]]:
    """Yield what the words of the command line name."""
    words = {"split": config.split, "layers": config.layers, "tokens": config.tokens}
    backbones = [text for text in config.inputs if not _is_store(text) and not _is_run(text)]
    many = len(config.weights)
    check((
        many <= 1 or many == len(backbones),
        f"weights are given {many} times, but {len(backbones)} backbones are named: give one for all, or one for each",
    ))  # fmt: skip
    made: list[Subject] = []
    live: list[LiveSubject] = []
    dataset: ImageDataset | None = None
    for place, text in enumerate(config.inputs):
        name = _name(text, config.inputs, place)
        if _is_store(text):
            made.append(StoredSubject(open_store(placed(text)), name, **words))
            continue
        dataset = dataset or open_dataset(_images(config))
        backbone = _run(text, config) if _is_run(text) else _backbone(text, backbones.index(text), config)
        live.append(LiveSubject(backbone, dataset, name, **words))
        made.append(live[-1])
    try:
        yield made
    finally:
        for subject in live:
            subject.close()


def _is_store(text: str) -> bool:
    return not _is_run(text) and store_exists(placed(text))


def _is_run(text: str) -> bool:
    return (Path(text) / RECORD).exists()


def _name(text: str, inputs: Sequence[str], place: int) -> str:
    """Return what an input is called: short, and not as another one."""
    short = Path(text).name if _is_store(text) or _is_run(text) else text
    twins = [number for number, other in enumerate(inputs) if other == text or Path(other).name == short]
    return short if len(twins) == 1 else f"{short} ({twins.index(place) + 1})"


def _images(config: AnalyzeConfig) -> str:
    if config.images is not None:
        return config.images
    for text in config.inputs:
        if _is_run(text) and "data" in (asked := read_trained(Path(text))[0]):
            return str(asked["data"])
    raise ConfigError(["models look at images, and none are named: give --images DATA"])


def _run(text: str, config: AnalyzeConfig) -> Backbone:
    return rebuilt(text, read_trained(Path(text))[1], device=config.device)


def _backbone(text: str, number: int, config: AnalyzeConfig) -> Backbone:
    weights = config.weights[number if len(config.weights) > 1 else 0] if config.weights else None
    return load_backbone(text, BackboneOptions(
        weights=weights, architecture=config.backbone_option, image_size=config.image_size,
        device=str(resolve_device(config.device)), precision=config.precision,
    ))  # fmt: skip


def shared(subjects: Sequence[Subject], count: int, seed: int) -> list[str]:
    """Return so many of the samples that all subjects have, drawn by `seed`.

    Raises:
        ConfigError: they have none in common; says how many each has.
    """
    held = [set(subject.ids) for subject in subjects]
    common = [name for name in subjects[0].ids if all(name in others for others in held)]
    if not common:
        counts = ", ".join(f"{subject.name} has {len(subject.ids)}" for subject in subjects)
        raise ConfigError([f"the subjects share no samples ({counts}): compare stores and models on the same data set"])
    drawn = np.random.default_rng(seed).permutation(len(common))[:count]
    return [common[place] for place in drawn]
