"""The verb `data`: look at every image of a data set before anything is spent on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featurecache.checks import Config, check
from featurecache.datasets import SPLITS, ImageDataset, LeftOut, open_dataset
from featurecache.errors import UnreadableSampleError
from featurecache.features import Task
from featurecache.progress import Bar, Stopwatch
from featurecache.reports import Displayed, Table
from pipelines._oddities import Look, find_odd_ones, kinds_of, look_at

SHOWN = 20
"""Rows of a table that a person is shown; JSON holds them all."""
SIZES_SHOWN = 5
AT_ONCE = 256
"""Images that wait for a thread: what is in memory does not grow with the data set."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Look at every image of a data set: counts, duplicates, odd ones out, what cannot be read. Nothing is written."""

    what: Literal["check"]
    """check: decode every image and count."""
    data: str
    """Data set: a folder, a .zip or .tar of one, a manifest (.csv, .tsv, .parquet), or NAME[:ARGUMENT] such as digits."""
    split_seed: int = 0
    """Seed of the automatic split, where the data brings none."""
    task: Task | None = None
    """How the labels of a manifest are read: classification, multilabel or regression; default: as they look."""
    decode_threads: int | None = None
    """Threads that decode images; default: as many as Python deems fit for this machine."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        check(
            (
                self.decode_threads is None or self.decode_threads > 0,
                f"decode_threads must be positive, got {self.decode_threads}",
            ),
        )


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Samples of one picture."""

    sample_ids: list[str]
    splits: list[str]
    """Of every sample; "" where it is in none."""
    same_target: bool
    """Whether all of them have the same label."""

    @property
    def across(self) -> bool:
        """Whether they are in several splits, so that what is tested was learned from."""
        return len(set(self.splits)) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport(Displayed):
    """What a data set holds."""

    name: str
    task: Task
    rows: int
    unlabelled: int
    columns: dict[str, dict[str, dict[str, int]]]
    """"class", "domain", "group" -> value -> split -> count of rows; groups and domains only where there are."""
    splits: dict[str, int]
    duplicates: list[Duplicates]
    unreadable: dict[str, str]
    """Sample id -> reason."""
    sizes: dict[str, int]
    """"smallest" and "largest" side of an image, in pixels."""
    formats: dict[str, int]
    """Format of the files by their content, such as JPEG -> pictures; empty where they are in no files."""
    pixels: dict[str, int]
    """"WIDTH x HEIGHT" -> pictures, the most frequent first."""
    kinds: dict[str, int]
    """colour, grey, CMYK, ..., and "animated" -> pictures; of an animation the first frame is read."""
    odd: dict[str, list[str]]
    """Sample id -> what is unlike the others."""
    left_out: LeftOut

    def tables(self) -> list[Table]:
        """Return the counts, the duplicates and what cannot be read."""
        names = [name for name in (*SPLITS, "") if name in self.splits]
        heads = [name or "in no split" for name in names]
        total = Table(f"{self.name}: {self.rows} rows", ("rows", "count"), list(self._totals()))
        counts = [
            Table(f"{kind} ({len(found)})", (kind, *heads), _first([
                (value, *(per_split.get(name, 0) for name in names)) for value, per_split in found.items()
            ]))
            for kind, found in self.columns.items()
        ]  # fmt: skip
        again = [
            ("across splits" if d.across else "within a split", "same" if d.same_target else "DIFFERENT",
             ", ".join(f"{name} ({split or 'no split'})" for name, split in zip(d.sample_ids, d.splits, strict=True)))
            for d in sorted(self.duplicates, key=lambda d: (not d.across, d.same_target))
        ]  # fmt: skip
        bad = list(self.unreadable.items())
        return [
            total,
            *counts,
            Table("one picture, several samples", ("where", "labels", "samples"), _first(again)),
            *self._odd_tables(),
            Table("cannot be read", ("sample", "reason"), _first(bad)),
            Table("", (), (), list(self._notes())),
        ]

    def _odd_tables(self) -> Iterator[Table]:
        """Yield formats and sizes where there are several, the odd ones out, and what gave no row."""
        for what, counts, most in (
            ("format", self.formats, SHOWN), ("kind", self.kinds, SHOWN), ("pixels", self.pixels, SIZES_SHOWN),
        ):  # fmt: skip
            if len(counts) > 1:
                yield Table(f"{what} ({len(counts)})", (what, "images"), _first(list(counts.items()), most))
        if self.odd:
            lines = [(name, "; ".join(reasons)) for name, reasons in self.odd.items()]
            yield Table(f"odd ones out ({len(lines)})", ("sample", "what is odd"), _first(lines))
        left = [(path, "no picture") for path in self.left_out.files]
        left += [(path, "folder without a picture") for path in self.left_out.folders]
        if left:
            yield Table(f"left out ({len(left)})", ("path", "why"), _first(left))

    def _totals(self) -> Iterator[tuple[str, int]]:
        yield from ((name or "in no split", count) for name, count in self.splits.items())
        yield "unlabelled", self.unlabelled
        yield "unreadable", len(self.unreadable)
        yield "files left out", len(self.left_out.files)
        if len(self.formats) == 1:
            yield from self.formats.items()
        yield from ((f"{which} side in pixels", pixels) for which, pixels in self.sizes.items())

    def _notes(self) -> Iterator[str]:
        across = [d for d in self.duplicates if d.across]
        if across:
            yield (
                f"{len(across)} pictures are in several splits: what is tested was learned from. "
                "Remove them, or name them one group in a manifest."
            )
        if any(not d.same_target for d in self.duplicates):
            yield f"{sum(not d.same_target for d in self.duplicates)} pictures have several labels."
        if not self.duplicates:
            yield "no picture is there twice"
        if self.odd:
            yield f"{len(self.odd)} pictures are odd ones out; all of them are rows like the others"
        if self.unreadable:
            yield f"{len(self.unreadable)} images cannot be read; extraction goes on without them with --on-error skip"
        else:
            yield "every image can be read"

    def json(self) -> dict[str, Any]:
        """Return everything, cut nowhere."""
        plain = (
            "name",
            "task",
            "rows",
            "unlabelled",
            "splits",
            "columns",
            "unreadable",
            "sizes",
            "formats",
            "kinds",
            "pixels",
            "odd",
        )
        duplicates = [
            {"sample_ids": d.sample_ids, "splits": d.splits, "across": d.across, "same_target": d.same_target}
            for d in self.duplicates
        ]
        left = {"files": list(self.left_out.files), "folders": list(self.left_out.folders)}
        return {**{name: getattr(self, name) for name in plain}, "duplicates": duplicates, "left_out": left}


def _first(rows: Sequence[Sequence[Any]], most: int = SHOWN) -> list[Sequence[Any]]:
    rest = len(rows) - most
    more = [("...", *([f"{rest} more"] + [""] * len(rows[0]))[: len(rows[0]) - 1])] if rest > 0 else []
    return [*rows[:most], *more]


def run(config: DataConfig) -> DataReport:
    """Open the data set and look at it."""
    dataset = open_dataset(config.data, split_seed=config.split_seed, task=config.task)
    return inspected(dataset, threads=config.decode_threads, quiet=config.quiet)


def inspected(dataset: ImageDataset, *, threads: int | None = None, quiet: bool = True) -> DataReport:
    """Decode every image once; compare pictures by their pixels, so that a copy in another format is found too."""
    table, target = dataset.table, np.asarray(dataset.table.target)
    split = [str(name) for name in table.split]
    looks: dict[int, Look] = {}
    unreadable: dict[str, str] = {}
    watch = Stopwatch()
    with Bar("checking", len(dataset), 0, quiet) as bar, ThreadPoolExecutor(threads) as pool:
        rows = iter(range(len(dataset)))
        while batch := list(islice(rows, AT_ONCE)):
            with watch.waiting("decode"):
                found = list(pool.map(lambda row: _look(dataset, row), batch))
            for row, look in zip(batch, found, strict=True):
                if isinstance(look, Look):
                    looks[row] = look
                else:
                    unreadable[table.sample_id[row]] = look
            bar.advance(len(batch), watch)
    of_picture: dict[str, list[int]] = defaultdict(list)
    for row, seen in looks.items():
        of_picture[seen.digest].append(row)
    sides = {side for seen in looks.values() for side in (seen.width, seen.height)}
    return DataReport(
        name=dataset.name,
        task=dataset.task,
        rows=len(dataset),
        unlabelled=int((~_labelled(dataset)).sum()),
        columns=_columns(dataset, split),
        splits={name: split.count(name) for name in (*SPLITS, "") if name in split},
        duplicates=[_duplicates(dataset, split, target, rows) for rows in of_picture.values() if len(rows) > 1],
        unreadable=unreadable,
        sizes={"smallest": min(sides), "largest": max(sides)} if sides else {},
        formats=dict(Counter(seen.form for seen in looks.values() if seen.form).most_common()),
        pixels=dict(Counter(f"{seen.width} x {seen.height}" for seen in looks.values()).most_common()),
        kinds=dict(Counter(kind for seen in looks.values() for kind in kinds_of(seen)).most_common()),
        odd={str(table.sample_id[row]): reasons for row, reasons in find_odd_ones(looks).items()},
        left_out=dataset.left_out,
    )


def _look(dataset: ImageDataset, row: int) -> Look | str:
    """Return what is seen of a picture, or why it cannot be read."""
    try:
        return look_at(dataset, row)
    except UnreadableSampleError as error:
        return error.reason


def _duplicates(
    dataset: ImageDataset, split: list[str], target: npt.NDArray[np.generic], rows: list[int]
) -> Duplicates:
    ids = [str(dataset.table.sample_id[row]) for row in rows]
    same = all(np.array_equal(target[row], target[rows[0]], equal_nan=target.dtype.kind == "f") for row in rows)
    return Duplicates(ids, [split[row] for row in rows], same)


def _labelled(dataset: ImageDataset) -> npt.NDArray[np.bool_]:
    """Return (N,) which rows have a label; one of several labels is without where it is in no split."""
    target = np.asarray(dataset.table.target)
    if dataset.task == "classification":
        return np.asarray(target >= 0)
    if dataset.task == "regression":
        return np.asarray(~np.isnan(target).any(1))
    return np.array([name != "" for name in dataset.table.split])


def _columns(dataset: ImageDataset, split: list[str]) -> dict[str, dict[str, dict[str, int]]]:
    table, target, names = dataset.table, np.asarray(dataset.table.target), dataset.class_names
    found: dict[str, dict[str, dict[str, int]]] = {}
    if dataset.task == "classification" and names:
        found["class"] = _counted([names[c] if c >= 0 else "" for c in target.tolist()], split, names)
    if dataset.task == "multilabel":
        where = np.asarray(split)
        found["class"] = {
            name: {s: int(target[where == s, k].sum()) for s in dict.fromkeys(split)} for k, name in enumerate(names)
        }
    for kind, values in (("domain", table.domain), ("group", table.group)):
        if any(values):
            found[kind] = _counted([str(value) for value in values], split, sorted(set(map(str, values)) - {""}))
    return found


def _counted(values: Sequence[str], split: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for value, name in zip(values, split, strict=True):
        if value:
            counts[value][name] += 1
    return {name: dict(found) for name, found in counts.items()}
