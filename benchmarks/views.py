"""Do cached views help?

    python benchmarks/views.py [--data DATA] [--backbone NAME[=WEIGHTS]] [--rows N] [--views 4] [--augment crop] [--out FILE]

A part of the data is extracted once with V views: N labelled training rows (with their validation rows), the same number
of each class, and every test row. Then the same heads are trained on that one store through the flow of `train-head`, as
many epochs and steps, with `--views all` (a view drawn for every row and epoch) and with `--views clean` (the picture as
it is), under several seeds of start and order. Told are the test accuracies and their paired difference, each the mean
over seeds with a 95 % interval by bootstrap over the test rows, and the deviation between seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _extracting
import _probing
from _extracting import Asked, extracted, plain_name
from _probing import LINEAR, Probe, trained
from _reporting import machine, markdown

from featurecache.datasets import ImageDataset, open_dataset
from featurecache.metrics import Measured
from featurecache.seeding import generator
from featurecache.views import RECIPES

DRAWS = 2000
"""Bootstrap samples of the test rows."""
APART = 1000
"""Between the data seeds of two runs: epoch e of a run shuffles by its data seed + e - 1, so neighbours share orders."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One head on one choice of views, or the difference that the choice makes."""

    head: str
    views: str
    accuracy: Measured
    deviation: float
    """Between seeds."""


def part(data: str, rows: int, folder: Path, tests: int | None = None) -> Path:
    """Write `rows` labelled rows of train and val, balanced, and `tests` (default: all) test rows as PNG files and a manifest."""
    dataset, manifest = open_dataset(data), folder / "part.csv"
    chosen = chosen_rows(dataset, rows, tests)
    if manifest.exists():
        return manifest
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for row in chosen.tolist():
        file = f"images/{row:07d}.png"
        dataset.read(row).save(folder / file)
        label = dataset.class_names[int(dataset.table.target[row])]
        lines.append((file, label, dataset.table.split[row], dataset.table.sample_id[row]))
    with manifest.open("w", encoding="utf-8", newline="") as file:  # last, so that a stopped run begins anew
        csv.writer(file).writerows([("path", "label", "split", "sample_id"), *lines])
    return manifest


def chosen_rows(dataset: ImageDataset, rows: int, tests: int | None = None) -> npt.NDArray[np.int64]:
    """Return the places of the part, ascending."""
    split, target = np.asarray(dataset.table.split), np.asarray(dataset.table.target)
    draw, learned = generator("part", 0), np.isin(split, ("train", "val"))
    each = -(-rows // len(dataset.class_names))
    picked = [draw.permutation(np.flatnonzero(learned & (target == c)))[:each] for c in range(len(dataset.class_names))]
    return np.sort(np.concatenate([*picked, draw.permutation(np.flatnonzero(split == "test"))[:tests]]))


def right(store: Path, out: Path, head: Probe, views: str, steps: int, seed: int) -> Floats:
    """Return (N,) whether a trained head is right on each test row."""
    trained(head, steps, store=store, out=out, views=views, seed=seed, data_seed=seed * APART)
    table = pyarrow.parquet.read_table(out / "predictions.parquet", columns=["label", "pred"]).to_pydict()
    return np.array([label == said for label, said in zip(table["label"], table["pred"], strict=True)], np.float64)


def lines_of(head: str, every: Floats, clean: Floats) -> list[Line]:
    """Return what (S, N) answers of S seeds on N test rows come to, by views, and their paired difference."""
    found = {"all": every, "clean": clean, "difference": every - clean}
    return [
        Line(head=head, views=name, accuracy=interval(answers.mean(0)), deviation=deviation(answers.mean(1)))
        for name, answers in found.items()
    ]


def interval(values: Floats) -> Measured:
    """Return the mean of (N,) rows with its bootstrap interval."""
    count, draw = len(values), generator("bootstrap", "views", 0)
    low, high = np.percentile(values[draw.integers(0, count, (DRAWS, count))].mean(1), [2.5, 97.5])
    return Measured(float(values.mean()), float(low), float(high))


def deviation(values: Floats) -> float:
    """Return the standard deviation of (S,) seeds, 0 for one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def measured(store: Path, folder: Path, heads: Sequence[Probe], seeds: int, steps: int) -> list[Line]:
    """Train every head on both choices of views under every seed."""
    lines = []
    for head in heads:
        answers: dict[str, list[Floats]] = {"all": [], "clean": []}
        for seed in range(seeds):
            for views in ("all", "clean"):
                run = folder / f"{store.stem}-{head.label}-{views}-{steps}-{seed}"
                answers[views].append(right(store, run, head, views, steps, seed))
                print(f"{run.name}: {answers[views][-1].mean():.4f}", file=sys.stderr, flush=True)
        lines += lines_of(head.label, np.stack(answers["all"]), np.stack(answers["clean"]))
    return lines


def main() -> None:
    """Measure, print, and write where that is wanted."""
    options = parse()
    asked, name = Asked.parse(options.backbone), f"{plain_name(options.data)}-{options.rows}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        data = part(options.data, options.rows, folder / name)
        store = folder / f"{asked.label}-{name}-{options.views}-{options.augment}.zarr"
        extracted(asked, str(data), store, views=options.views, augment=options.augment)
        heads = [Probe.parse(text) for text in options.head or (LINEAR, "lfa")]
        lines = measured(store, folder / "runs", heads, options.seeds, options.steps)
    rows = [(line.head, line.views, _points(line.accuracy), f"{100 * line.deviation:.2f}") for line in lines]
    print(f"{asked.label} on {name}, {options.views} views ({options.augment}), {options.seeds} seeds\n")
    print(markdown(("head", "views", "test accuracy, % [95 %]", "deviation between seeds"), rows))
    if options.out:
        found: dict[str, Any] = {"settings": vars(options), "machine": machine(), "heads": [asdict(x) for x in lines]}
        options.out.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")


def _points(found: Measured) -> str:
    return f"{100 * found.value:.2f} [{100 * found.low:.2f}, {100 * found.high:.2f}]"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits", help="data set, as extract-features takes it")
    parser.add_argument("--backbone", default="demo", help=_extracting.GRAMMAR)
    parser.add_argument("--rows", type=int, default=500, help="labelled rows of train and val")
    parser.add_argument("--views", type=int, default=4, help="views of every row: the clean one, then drawn ones")
    parser.add_argument("--augment", choices=tuple(RECIPES), default="crop", help="how they are drawn")
    parser.add_argument(
        "--head", action="append", help=f"{_probing.GRAMMAR}; may be given several times (default: {LINEAR}, and lfa)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs of each")
    parser.add_argument("--steps", type=int, default=1000, help="steps of a run, at least")
    parser.add_argument("--folder", type=Path, help="where part, store and runs are kept; default: for this run only")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
