"""The verb `plan`: what an extraction will take, before it runs: rows, bytes of every array, minutes, memory of the scores.

Minutes come from a short extraction of the very kind, into a store beside the one that is planned, of batches from all over
the data set: first one batch, then as many as fit the time that it may take. What both have in common is counted once.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import logme
from featurecache.backbones import Backbone
from featurecache.checks import check
from featurecache.datasets import ImageDataset, RowTable
from featurecache.features import Header
from featurecache.growing import Picked, grown_table
from featurecache.opening import absent
from featurecache.reports import Displayed, Table
from featurecache.sources.images import grid
from featurecache.stores import create_store, open_store, planned_bytes, united
from featurecache.threads import heeds_threads
from save_features import SaveFeaturesConfig, Work, save_features, work_of

SCORED_ROWS, TRIED_TEXTS = 2048, 64
"""Rows over which the time of a score is measured, and texts over which that of the text side is."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig(SaveFeaturesConfig):
    """Say how many rows and bytes an extraction will make and how many minutes it will take; takes the same options."""

    out: Path = Path("features.zarr")
    """Store that would be written; the suffix names the format (.zarr, .h5), the folder the disk."""
    probe_seconds: float = 15.0
    """Seconds that the trial may take."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check((self.probe_seconds > 0, f"probe_seconds must be positive, got {self.probe_seconds}"))


@dataclass(frozen=True, kw_only=True)
class Plan(Displayed):
    """What an extraction will take."""

    out: Path
    rows: int
    rows_left: int
    """Rows that no run has computed yet."""
    arrays: Mapping[str, int]
    """Array -> bytes of its files; the row table and metadata in one entry."""
    shapes: Mapping[str, tuple[int, ...]]
    """Array -> shape of one row of one view."""
    seconds: Mapping[str, float]
    """start (model and list of images), features, scores -> seconds."""
    rows_per_second: float
    scores_bytes: int
    """Memory that scoring takes, besides that of the extraction."""
    free_bytes: int
    """Free on the disk of the store."""

    @property
    def total_bytes(self) -> int:
        """Bytes of the finished store."""
        return sum(self.arrays.values())

    @property
    def minutes(self) -> float:
        """Minutes from the start of the command to its end, without the seconds in which Python starts."""
        return sum(self.seconds.values()) / 60

    def tables(self) -> list[Table]:
        """Return the arrays with their bytes, and what the whole takes."""
        shapes = {name: "x".join(map(str, shape)) for name, shape in self.shapes.items()}
        rows = [(name, shapes.get(name, ""), _in_words(size)) for name, size in self.arrays.items()]
        return [Table(f"{self.out} when it is finished", ("array", "a row", "size"), rows, tuple(self._notes()))]

    def _notes(self) -> list[str]:
        left = "" if self.rows_left == self.rows else f", {self.rows_left} of them still to compute"
        parts = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in self.seconds.items())
        notes = [
            f"{self.rows} rows{left}; {_in_words(self.total_bytes)}, with {_in_words(self.free_bytes)} free there",
            f"{self.minutes:.1f} minutes at {self.rows_per_second:.1f} rows/s ({parts})",
            f"scores take {_in_words(self.scores_bytes)} of memory",
        ]
        if self.total_bytes > self.free_bytes:
            notes.append("It does not fit: make room, name another --out, or keep fewer layers or tokens.")
        return notes

    def json(self) -> dict[str, Any]:
        """Return everything the table says, in bytes and seconds."""
        plain = {**dataclasses.asdict(self), "out": str(self.out)}
        return {**plain, "total_bytes": self.total_bytes, "minutes": self.minutes}


@heeds_threads
def run(config: PlanConfig) -> Plan:
    """Build the model, list the images, try some batches, and reckon from that."""
    started = time.perf_counter()
    work = work_of(config)
    starting = time.perf_counter() - started
    whole, lacked, left, table = _left(config.out, work)
    fixed, rate = _tried(work, lacked, config) if left else (0.0, 0.0)
    seconds = {"start": starting, "features": fixed + left / rate if left else 0.0}
    if lacked.constants:
        seconds["texts"] = _text_seconds(work.backbone, lacked)
    if left:
        seconds["scores"] = _scoring_seconds(lacked, work.dataset)
    return Plan(
        out=config.out,
        rows=whole.rows,
        rows_left=left,
        arrays=planned_bytes(config.out, whole, table, chunk_multiple=config.batch_size),
        shapes={spec.name: spec.tail for spec in (*whole.arrays, *whole.constants)},
        seconds=seconds,
        rows_per_second=rate,
        scores_bytes=_scores_bytes(whole),
        free_bytes=shutil.disk_usage(_standing(config.out)).free,
    )


def _left(out: Path, work: Work) -> tuple[Header, Header, int, RowTable]:
    """Return the header of the finished store, that of what is still to be computed, of how many rows, and all rows.

    Raises:
        StoreMismatchError: a store of other features is there.
    """
    if work.held is None:
        return work.wanted, work.wanted, work.wanted.rows, work.dataset.table
    store = open_store(out)
    try:
        found = absent(out, store, work.dataset, work.wanted)
        new, names = found.standing.new, set(found.names)
        table = grown_table(store.header, store.table(), work.dataset, new)
        wanted = dataclasses.replace(found.wanted, rows=len(table))
        everything = dataclasses.replace(united(store.header, wanted), rows=len(table))
        arrays = tuple(spec for spec in wanted.arrays if spec.name in names)
        views = 0 if arrays or not store.finished else wanted.views - store.header.views
        lacked = dataclasses.replace(
            wanted,
            arrays=arrays if arrays and store.finished else everything.arrays if new else wanted.arrays,
            constants=tuple(spec for spec in wanted.constants if spec.name in names),
            views=views if views > 0 else wanted.views,
        )
        more_rows = bool(arrays) or wanted.views > store.header.views
        left = len(table) if more_rows else sum(map(len, store.missing())) + len(new)
        return everything, lacked, left, table
    finally:
        store.close()


def _picked(dataset: ImageDataset, rows: Sequence[int]) -> ImageDataset:
    """Return those rows as a data set of their own, of no split, so that nothing is scored."""
    table = dataset.table
    columns = {name: [getattr(table, name)[row] for row in rows] for name in ("sample_id", "domain", "group")}
    part = RowTable(**columns, split=[""] * len(rows), target=np.asarray(table.target)[list(rows)])
    places = np.asarray(rows)
    return dataclasses.replace(
        dataset, table=part, read=Picked(dataset.read, places), content=Picked(dataset.content, places)
    )


def _tried(work: Work, wanted: Header, config: PlanConfig) -> tuple[float, float]:
    """Return (seconds that every extraction takes, rows a second)."""
    batches = list(grid(range(len(work.dataset)), config.batch_size))
    drawn = {name: value for name, value in wanted.backbone.items() if name != "views" or wanted.views > 1}
    plain = dataclasses.replace(wanted, backbone=drawn, constants=(), prompts=())

    def seconds(count: int) -> float:
        places = np.unique(np.linspace(0, len(batches) - 1, count).round().astype(int))
        rows = [row for place in places for row in batches[place]]
        return _extraction(
            work.backbone, _picked(work.dataset, rows), dataclasses.replace(plain, rows=len(rows)), config
        )

    seconds(1)  # threads and allocators begin
    one = seconds(1)
    count = min(len(batches), max(2, int(config.probe_seconds / one)))
    if count == 1:
        return 0.0, len(work.dataset) / one
    many = seconds(count)
    each = max((many - one) / (count - 1), many / count / 2)
    return max(many - count * each, 0.0), config.batch_size / each


def _extraction(backbone: Backbone, dataset: ImageDataset, header: Header, config: PlanConfig) -> float:
    """Return the seconds of a whole extraction but its scores, into a store that is removed again."""
    with tempfile.TemporaryDirectory(dir=_standing(config.out), prefix=".featurecache-plan-") as folder:
        trial = dataclasses.replace(config, out=Path(folder, config.out.name), on_error="skip", quiet=True)
        started = time.perf_counter()
        store = create_store(trial.out, header, dataset.table, chunk_multiple=config.batch_size)
        try:
            save_features(backbone, dataset, store, trial)
        finally:
            store.close()
        return time.perf_counter() - started


def _text_seconds(backbone: Backbone, header: Header) -> float:
    """Return about the seconds in which the text side reads every class name in every template."""
    assert backbone.text is not None
    names, templates = (
        header.class_names[:TRIED_TEXTS],
        header.prompts[: max(1, TRIED_TEXTS // len(header.class_names))],
    )
    started = time.perf_counter()
    backbone.text.features(names, templates)
    each = (time.perf_counter() - started) / (len(names) * len(templates))
    return each * len(header.class_names) * len(header.prompts)


def _standing(path: Path) -> Path:
    """Return the folder that `path` would be made in, or the nearest above it that is there."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def _scoring_seconds(header: Header, dataset: ImageDataset) -> float:
    """Return about the seconds in which every vector array is scored, measured on random features of each width."""
    counted = sum(split == "train" for split in dataset.table.split)
    if not counted:
        return 0.0
    widths = [spec.tail[0] for spec in header.arrays if len(spec.tail) == 1 and spec.name != "logits"]
    total = 0.0
    for width in set(widths):
        moments = logme.Moments(width, len(header.class_names), task=header.task)
        values, targets = _random_rows(header, width)
        started = time.perf_counter()
        moments.update(values, targets)
        updated = time.perf_counter()
        logme.LogME(task=header.task).fit_moments(moments)
        fitted = time.perf_counter()
        total += widths.count(width) * ((updated - started) * counted / SCORED_ROWS + fitted - updated)
    return total


def _random_rows(header: Header, width: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    random, count = np.random.default_rng(0), len(header.class_names)
    features = random.standard_normal((SCORED_ROWS, width), np.float32)
    if header.task == "classification":
        return features, np.arange(SCORED_ROWS) % count
    values = random.standard_normal((SCORED_ROWS, count), np.float32)
    return features, (values > 0).astype(np.uint8) if header.task == "multilabel" else values


def _scores_bytes(header: Header) -> int:
    """Return the bytes of the moments of the widest array in float64, and of their eigenvectors beside them."""
    width = max((spec.tail[0] for spec in header.arrays if len(spec.tail) == 1), default=0)
    return 8 * (3 * width**2 + width * max(len(header.class_names), 1))


def _in_words(size: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
