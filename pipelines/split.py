"""The verb `split`: the rows of a finished store divided anew into train, val and test; no feature is computed or moved."""

from __future__ import annotations

import csv
import dataclasses
import sys
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.checks import Config, check
from featurecache.datasets import SPLITS, RowTable
from featurecache.datasets._split_names import read_splits as read_split_names
from featurecache.datasets._splits import TEST_SHARE, VAL_SHARE, report_gaps
from featurecache.division import DIVISION, check_division, draw_division, hold_out, stratify
from featurecache.errors import ConfigError, StoreBusyError, StoreContentsError, StoreError
from featurecache.features import Header
from featurecache.places import is_url
from featurecache.provenance import note
from featurecache.reports import Displayed, Table
from featurecache.stores import FeatureStore, explained, open_store

SHOWN = 5
"""Names that a message lists of many."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Config):
    """Divide the rows of a finished store anew into train, val and test; no image is read and no feature is computed.

    Without --from, every sample (every group, where there are groups) goes where a digest of its id leads, as in an
    extraction of data that brings no splits: --seed 3 gives what --split-seed 3 gives there. Samples of a group are never
    separated, and every class keeps some in train. The same command again changes nothing.
    """

    store: Path
    """Finished store to divide: .zarr, or .h5, which is written again."""
    seed: int = 0
    """Seed of the draw."""
    test: float | None = None
    """Share of the labelled samples that is measured; default: 0.2."""
    val: float | None = None
    """Share of the samples left for training that is held out to choose on; default: 0.1; with --from: none, unless given."""
    from_: Path | None = None
    """CSV file with the columns sample_id and split (train, val or test), one line for every labelled sample, instead of a draw."""
    take_over: bool = False
    """Take the place of a writer on another machine that was silent for five minutes."""

    def __post_init__(self) -> None:
        test, val = self.shares
        drawn = self.from_ is None
        check(
            (0 <= test < 1, f"test must lie in [0, 1), got {test:g}"),
            (0 <= val < 1, f"val must lie in [0, 1), got {val:g}"),
            (not drawn or test > 0 or val > 0, "with test 0 and val 0 every row would be in train: give one of them"),
            (drawn or self.test is None, "--from says which samples are the test, and --test draws them: give one"),
            (drawn or self.from_ is None or self.from_.suffix == ".csv", f"{self.from_} must end in .csv"),
        )  # fmt: skip

    @property
    def shares(self) -> tuple[float, float]:
        """Shares of test, and of val among the rest."""
        none = 0.0 if self.from_ else VAL_SHARE
        return TEST_SHARE if self.test is None else self.test, none if self.val is None else self.val


@dataclass(frozen=True, slots=True)
class Division:
    """Splits of all rows, and the rule that gave them."""

    split: Sequence[str]
    rule: str
    identity: Mapping[str, Any]
    """What the header keeps of the rule."""


@dataclass(frozen=True, kw_only=True)
class SplitReport(Displayed):
    """How a store is divided now."""

    store: Path
    rule: str
    counts: Mapping[str, int]
    """Split -> rows in it; "": rows in none."""
    moved: int
    """Rows that were in another split before."""
    stale: Sequence[str] = ()
    """Scores that were kept and are of other rows now."""

    def tables(self) -> list[Table]:
        """Return the rows of every split, and what else is to be known."""
        rows = [(name, self.counts.get(name, 0)) for name in SPLITS]
        rows += [("none", self.counts[""])] if self.counts.get("") else []
        said = f"{self.moved} rows moved" if self.moved else "it is divided so already: nothing to do"
        notes = [f"{self.store}: {said} ({self.rule})"]
        if self.stale:
            notes.append(
                f"scores of other training rows were dropped ({', '.join(self.stale)}): featurecache logme {self.store} "
                "computes them again"
            )
        if not self.counts.get("val") and self.counts.get("train"):
            notes.append("there are no rows to choose on: --val 0.1 holds some of train out")
        if not self.counts.get("test"):
            notes.append("there are no rows to measure on: run-protocol and leaks need a test split")
        return [Table("splits", ("split", "rows"), rows, notes)]

    def json(self) -> dict[str, Any]:
        """Return everything the table says."""
        return {
            "store": str(self.store), "rule": self.rule, "rows": {name or "none": n for name, n in self.counts.items()},
            "moved": self.moved, "dropped_scores": list(self.stale),
        }  # fmt: skip


def run(config: SplitConfig) -> SplitReport:
    """Divide the store, and seal it again; or say that it is divided so already.

    Raises:
        StoreContentsError: the store is unfinished, or has no labels to divide by.
        ConfigError: the table names what the store does not hold, or leaves samples out; lists everything at once.
        DatasetError: the table separates samples of a group.
        StoreBusyError, StoreError: another process writes the store, or it can only be read.
    """
    reader = open_store(config.store)
    _check_divisible(config.store, reader)
    division = divide(reader.header, reader.table(), config)
    if reader.finished and not _moved(reader, division) and reader.header == divided_header(reader.header, division):
        return SplitReport(store=config.store, rule=division.rule, counts=Counter(division.split), moved=0)
    reader.close()
    store = _open_writable(config)
    try:
        return divide_store(store, config)
    finally:
        store.close()


def divide_store(store: FeatureStore, config: SplitConfig) -> SplitReport:
    """Divide a store that is open for writing, and seal it again."""
    table = store.table()
    division = divide(store.header, table, config)
    moved, header = _moved(store, division), divided_header(store.header, division)
    stale: list[str] = []
    if moved or header != store.header:
        facts = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv}
        with explained(f"write to {store.path}"):
            note(store.notes, {**facts, "split": {"rule": division.rule, "moved": moved, **division.identity}})
        store.replace_split(header, division.split)
        stale = _drop_scores(store) if moved else []
    if not store.finished:
        store.finish()
    if store.header.task != "regression":
        report_gaps(store.header.class_names, np.asarray(table.target), division.split, str(store.path))
    return SplitReport(
        store=config.store, rule=division.rule, counts=Counter(division.split), moved=moved, stale=stale,
    )  # fmt: skip


def _moved(store: FeatureStore, division: Division) -> int:
    """Return how many rows are in another split than the division wants them in."""
    return sum(str(old) != new for old, new in zip(store.table().split, division.split, strict=True))


def _check_divisible(path: Path, store: FeatureStore) -> None:
    """Refuse a store that is not complete, or that holds nothing to divide."""
    if gaps := store.missing():
        raise StoreContentsError(
            f"{path} is not finished: {sum(map(len, gaps))} of {store.header.rows} rows are not committed, so it is not "
            "divided yet. Run its extract-features command again; it resumes where it stopped."
        )
    if (stratify(store.table(), store.header.task) < 0).all():
        raise StoreContentsError(
            f"{path} holds no labelled row, so there is nothing to learn from or to measure, and nothing to divide."
        )


def _open_writable(config: SplitConfig) -> FeatureStore:
    if is_url(str(config.store)):
        raise StoreError(f"{config.store} can only be read. Copy it to a disk here, divide the copy, and copy it back.")
    try:
        return open_store(config.store, writable=True, take_over=config.take_over)
    except StoreBusyError:
        raise
    except StoreError as error:
        if isinstance(error.__cause__, OSError):
            raise StoreError(
                f"{config.store} cannot be written ({error.__cause__.strerror}), so it stays divided as it is. Make it "
                f"writable, or divide a copy: featurecache convert {config.store} --out COPY.zarr"
            ) from error
        raise


def divide(header: Header, table: RowTable, config: SplitConfig) -> Division:
    """Return the splits that the config asks for.

    Raises:
        ConfigError, DatasetError: a table that does not fit the store.
    """
    test, val = config.shares
    if config.from_ is None:
        split, rule = draw_division(table, header.task, seed=config.seed, test=test, val=val)
        return Division(split, rule, {"seed": config.seed, "test": test, "val": val})
    split = read_splits(config.from_, table, stratify(table, header.task) >= 0)
    check_division(table, split)
    crc = zlib.crc32("".join(f"{name}\0{part}\n" for name, part in zip(table.sample_id, split, strict=True)).encode())
    rule = f"table {crc:08x}"
    if val and "val" not in split:
        split = hold_out(table, header.task, split, seed=config.seed, share=val)
        rule += f", val {100 * val:g} % of train, seed {config.seed}"
    return Division(split, rule, {"table": f"{crc:08x}"})


def divided_header(held: Header, division: Division) -> Header:
    """Return the header of a store that is divided so; the rule of the data set itself stays known.

    Where a draw is the very rule of the data set, the header is that of an extraction: the store was never divided anew.
    """
    known = held.dataset.get(DIVISION, {})
    own = known.get("of_data", held.dataset.get("split_rule", ""))
    if own == division.rule and "seed" in division.identity:
        return dataclasses.replace(
            held, dataset={k: v for k, v in {**held.dataset, "split_rule": own}.items() if k != DIVISION}
        )
    identity = {**held.dataset, "split_rule": division.rule, DIVISION: {**division.identity, "of_data": own}}
    return dataclasses.replace(held, dataset=identity)


def read_splits(path: Path, table: RowTable, labelled: Any) -> list[str]:
    """Return the split of every row as a CSV of `sample_id,split` names them; "" for unlabelled rows that it leaves out.

    Raises:
        ConfigError: lists unknown ids, missing ids, ids named twice and unknown words for splits, all at once.
    """
    lines = _read_lines(path)
    ids = [str(name) for name in table.sample_id]
    words = {name: word for _, name, word in lines}
    known_words = read_split_names(set(words.values()))
    counts = Counter(name for _, name, _ in lines)
    known = set(ids)
    places = {name: f"line {number}: {name!r}" for number, name, _ in lines}
    check(
        _none("ids that the store does not hold", [places[name] for name in words if name not in known]),
        _none("ids that are there twice", [places[name] for name, count in counts.items() if count > 1]),
        _none(
            f"words for splits other than {', '.join(SPLITS)} and their usual names",
            [f"line {number}: {word!r}" for number, _, word in lines if word and not known_words.get(word)],
        ),
        _none(
            "labelled samples of the store that have no line, or no split in it",
            [repr(name) for name, needed in zip(ids, labelled, strict=True) if needed and not words.get(name)],
        ),
    )
    return [known_words.get(words.get(name, ""), "") for name in ids]


def _none(what: str, found: Sequence[str]) -> tuple[bool, str]:
    shown = ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    return not found, f"{len(found)} {what}: {shown}"


def _read_lines(path: Path) -> list[tuple[int, str, str]]:
    """Return (line, sample id, word for the split) of every line of a CSV.

    Raises:
        ConfigError: it cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=first.count))
            reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or ()]
            check((
                {"sample_id", "split"} <= set(columns),
                f"{path} needs the columns sample_id and split; its first line has {', '.join(columns) or 'nothing'}",
            ))  # fmt: skip
            return [(reader.line_num, (row["sample_id"] or "").strip(), (row["split"] or "").strip()) for row in reader]
    except OSError as error:
        raise ConfigError([f"cannot read {path}: {error.strerror or error}"]) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError([f"{path} is not a CSV file in UTF-8: {error}"]) from None


def _drop_scores(store: FeatureStore) -> list[str]:
    """Remove the kept scores, which are of the training rows of before; return their names."""
    files = sorted((store.notes / "scores").glob("*.json"))
    for file in files:
        file.unlink(missing_ok=True)
    return [file.stem for file in files]
