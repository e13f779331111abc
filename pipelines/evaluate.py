"""The verb `evaluate`: a trained run on its own test rows or on other data, from stores of its features or from images; classes meet by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet

from featurecache.checks import check
from featurecache.devices import resolve_device
from featurecache.files import json_bytes, write_atomic, write_whole
from featurecache.places import placed
from featurecache.reports import Displayed, Table, format_measured
from featurecache.runs import read_trained
from featurecache.stores import explained, open_store
from featurecache.threads import Computing, heeds_threads
from heads._checkpoint import load_head
from pipelines._evaluation import prediction_table
from pipelines._rows import labelled_rows
from pipelines._training_rows import TrainingRows, read_training_rows, recall_training_rows
from pipelines.predicting.elsewhere import Judged, Split, from_data, from_store, is_a_store, measured
from pipelines.predicting.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Computing):
    """Measure a trained run on its own test rows or on other data: stores of the same features, or images; classes are matched by name."""

    run_folder: Path
    """Run folder written by train-head, train-online or train-student."""
    test: tuple[str, ...] = ()
    """Store of the same features, or a data set (folder, archive, manifest, NAME:ARGUMENT); may be given several times. Default: what the run was trained on."""
    split: Split = "auto"
    """Rows to measure; auto: the test rows of the run's own data and of data that come divided, else all."""
    test_split: str | None = None
    """Split to measure, by its name in the data; the same as --split, but for any name."""
    classes: str | None = None
    """Classes among which the run may choose, joined by commas; rows of others are left out. Default: all of the run's."""
    out: Path | None = None
    """Table to write, .csv or .json."""
    predictions: Path | None = None
    """File to write, .parquet, one line a sample: what it was, what the run says, and every probability."""
    weights: str | None = None
    """Where the backbone's weights are now, if their file has moved; must be the weights of the run."""
    batch_size: int = 64
    """Images per forward pass."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable image does: stop, or be left out and counted."""
    device: str = "cpu"
    """Device to run on: cpu, cuda, cuda:1, auto."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        table, rows = self.out, self.predictions
        check(
            (self.test_split is None or self.split == "auto", "split and test_split say the same: give one of them"),
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
            (table is None or table.suffix in (".csv", ".json"), f"{table} must end in .csv or .json"),
            (rows is None or rows.suffix == ".parquet", f"{rows} must end in .parquet"),
        )


@dataclass(frozen=True, slots=True)
class Evaluation(Displayed):
    """One run on several tests."""

    run: Path
    found: Sequence[Mapping[str, Any]]
    """One entry a test: test, source, rows, groups, classes, metrics, recall, notes."""

    def tables(self) -> list[Table]:
        """Return one row a test, then the recall of every class, one column a test."""
        names = list(dict.fromkeys(name for entry in self.found for name in entry["metrics"]))
        rows = [
            (entry["test"], entry["rows"], *(_shown(entry["metrics"].get(name)) for name in names))
            for entry in self.found
        ]
        notes = [f"{entry['test']}: {note}" for entry in self.found for note in entry["notes"]]
        warnings = [f"{entry['test']}: {entry['warning']}" for entry in self.found if entry.get("warning")]
        shown = [Table("", (), (), warnings)] if warnings else []
        shown += [Table(f"{self.run} (95 % intervals)", ("test", "rows", *names), rows, notes)]
        classes = list(dict.fromkeys(name for entry in self.found for name in entry["recall"]))
        recalls = [
            (name, *("" if (value := entry["recall"].get(name)) is None else f"{value:.3f}" for entry in self.found))
            for name in classes
        ]
        if recalls:
            shown.append(Table("recall", ("class", *(entry["test"] for entry in self.found)), recalls))
        return shown

    def json(self) -> dict[str, Any]:
        """Return the run and one entry a test."""
        return {"run": str(self.run), "tests": [dict(entry) for entry in self.found]}

    def csv(self) -> bytes:
        """Return one line a test and metric; recalls are the metrics recall:CLASS, without interval."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["test", "rows", "groups", "metric", "value", "low", "high"])
        for entry in self.found:
            where = (entry["test"], entry["rows"], entry["groups"])
            writer.writerows((*where, name, *value.values()) for name, value in entry["metrics"].items())
            writer.writerows((*where, f"recall:{name}", value, "", "") for name, value in entry["recall"].items())
        return text.getvalue().encode()


def _shown(measured: Mapping[str, float | None] | None) -> str:
    return "" if measured is None else format_measured(measured)


@heeds_threads
def run(config: EvaluateConfig) -> Evaluation:
    """Measure the run on every test.

    Raises:
        RunError: no finished run is there, or its backbone cannot be built again.
        StoreMismatchError, StoreContentsError: a store of other features, or one that lacks what the head reads.
        ConfigError: data of another task, or without a class of the run; a class in --classes that the run does not know.
    """
    settings, record = read_trained(config.run_folder)
    classes = chosen(config.classes, record["class_names"])
    device = str(resolve_device(config.device))
    head = load_head(config.run_folder)[0].to(device)
    predictor: Predictor | None = None  # built where images are to be looked at, and nowhere else
    found, tables = [], []
    split, known = config.test_split or config.split, cache(partial(training_rows, config.run_folder, settings, record))
    for test in config.test or own(settings):
        if is_a_store(test):
            judged = from_store(test, record, head, split=split, classes=classes, device=device, known=known)
        else:
            predictor = predictor or Predictor.load(config.run_folder, weights=config.weights, device=device)
            judged = from_data(
                test, predictor, split=split, classes=classes, batch_size=config.batch_size,
                on_error=config.on_error, quiet=config.quiet, known=known,
            )  # fmt: skip
        found.append({"test": test, **measured(judged)})
        if config.predictions is not None:
            tables.append(_lines(test, judged))
    report = Evaluation(config.run_folder, found)
    _write(config, report, tables)
    return report


def training_rows(run: Path, settings: Mapping[str, Any], record: Mapping[str, Any]) -> TrainingRows | None:
    """Return the samples that a run was trained on: as it noted them, or from its store; None where neither is there."""
    noted = read_training_rows(run)
    if noted is not None or "store" not in settings or not is_a_store(str(settings["store"])):
        return noted
    store = open_store(placed(str(settings["store"])))
    if dict(store.header.dataset) != record["features"]["data"]:
        return None  # it is of other data by now, or divided anew
    rows = {split: labelled_rows(store, split) for split in ("train", "val")}
    return recall_training_rows(store, rows, record["features"]["arrays"][0]["name"])


def own(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the store or the data set that a run with these settings was trained on.

    Raises:
        ConfigError: it was a store, and is not there.
    """
    name = str(settings["store"] if "store" in settings else settings["data"])
    problem = (
        f"the run was trained on the store {name}, which is not there, seen from {Path.cwd()}. Name one with --test"
    )
    check(("store" not in settings or is_a_store(name), problem))
    return (name,)


def chosen(words: str | None, known: Sequence[str]) -> list[str]:
    """Return the classes that a text joined by commas names, in the run's order; None: all.

    Raises:
        ConfigError: the run does not know one, or there are too few to choose among.
    """
    if words is None:
        return list(known)
    named = [words] if words in known else [part.strip() for part in words.split(",")]
    strange = [name for name in named if name not in known]
    shown = ", ".join(known[:20]) + (" ..." if len(known) > 20 else "")
    check(
        (not strange, f"the run has no class {', '.join(map(repr, strange))}; its classes are {shown}"),
        (len(set(named)) > 1 or len(known) == 1, f"--classes must leave at least two to choose among, got {words!r}"),
    )
    return [name for name in known if name in named]


def _lines(test: str, judged: Judged) -> pa.Table:
    lines = prediction_table(judged.sample_ids, judged.targets, judged.logits, judged.class_names, judged.task)
    return lines.add_column(0, "test", pa.array([test] * len(lines), pa.string()))


def _write(config: EvaluateConfig, report: Evaluation, tables: Sequence[pa.Table]) -> None:
    if config.out is not None:
        with explained(f"write {config.out}"):
            config.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(config.out, report.csv() if config.out.suffix == ".csv" else json_bytes(report.json()))
    if config.predictions is not None:
        whole = pa.concat_tables(tables, promote_options="default")
        with explained(f"write {config.predictions}"):
            config.predictions.parent.mkdir(parents=True, exist_ok=True)
            write_whole(config.predictions, lambda temporary: pa.parquet.write_table(whole, temporary))
