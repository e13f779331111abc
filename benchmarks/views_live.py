"""What does live augmentation give over cached views, and what does it cost?

    python benchmarks/views_live.py [--data DATA] [--backbone NAME] [--weights FILE] [--image-size 96] [--rows N] [--out FILE]

A part of the data, and one head trained on it in three ways, for as many epochs and steps of the same batch size:

- live: `train-online --peft none`, every picture augmented anew in every epoch, through the frozen backbone every time;
- 1 view: `extract-features` of the clean pictures, then `train-head`;
- V views: `extract-features --views V`, drawn by the same recipe, then `train-head`, which draws one for every row and step.

Told are the test accuracies with a 95 % interval by bootstrap over the test rows, the seconds of extraction and of
training, and how many times longer live training takes. A seed is one training of each; a store is written once for all.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _extracting import Asked, extracted, plain_name
from _reporting import machine, markdown, seconds
from views import APART, interval, part

from featurecache.metrics import Measured
from featurecache.views import RECIPES
from pipelines import train_head, train_online
from pipelines.train_head import TrainHeadConfig
from pipelines.train_online import TrainOnlineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One way to train."""

    way: str
    accuracy: Measured
    extracting_seconds: float
    training_seconds: float
    """Of one seed, in the mean."""
    live_by_this: float
    """Seconds of live training by those of this way, extraction and one training."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One way to train, before it is compared."""

    way: str
    answers: npt.NDArray[np.float64]
    """(S, N) whether each test row was right, of every seed."""
    extracting: float
    training: float


def taken(way: str, extracting: float, runs: Path, seeds: int, train: Callable[[Path, int], object]) -> Taken:
    """Train once a seed, and return what came of it."""
    answers, times = [], []
    for seed in range(seeds):
        run = runs / f"{plain_name(way)}-{seed}"
        times.append(seconds(lambda run=run, seed=seed: train(run, seed)))  # type: ignore[misc]
        table = pyarrow.parquet.read_table(run / "predictions.parquet", columns=["label", "pred"]).to_pydict()
        answers.append([label == said for label, said in zip(table["label"], table["pred"], strict=True)])
        print(f"{way}, seed {seed}: {np.mean(answers[-1]):.4f} in {times[-1]:.1f} s", file=sys.stderr, flush=True)
    return Taken(way, np.array(answers, np.float64), extracting, float(np.mean(times)))


def live(asked: Asked, data: Path, runs: Path, options: argparse.Namespace) -> Taken:
    """Train through the backbone."""

    def train(run: Path, seed: int) -> object:
        return train_online.run(
            TrainOnlineConfig(
                data=str(data), backbone=asked.name, weights=asked.weights, backbone_option=asked.architecture,
                transform=asked.transform, image_size=options.image_size, augment=options.augment, out=run,
                **_same(options, seed),
            )
        )  # fmt: skip

    return taken("live", 0.0, runs, options.seeds, train)


def cached(asked: Asked, data: Path, views: int, folder: Path, options: argparse.Namespace) -> Taken:
    """Extract so many views, and train from the store."""
    store = folder / f"{views}.zarr"
    settings = {"views": views, "augment": options.augment, "image_size": options.image_size}
    extracting = seconds(lambda: extracted(asked, str(data), store, **settings))

    def train(run: Path, seed: int) -> object:
        return train_head.run(TrainHeadConfig(store=store, out=run, **_same(options, seed)))

    return taken(f"{views} cached", extracting, folder / "runs", options.seeds, train)


def _same(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    return {
        "head": options.head, "epochs": options.epochs, "lr": options.lr, "batch_size": options.batch_size,
        "seed": seed, "data_seed": seed * APART, "quiet": True,
    }  # fmt: skip


def lines_of(found: Sequence[Taken]) -> list[Line]:
    """Return what is told of all ways; the first one is live."""
    dear = found[0].training
    return [
        Line(
            way=one.way, accuracy=interval(one.answers.mean(0)), extracting_seconds=one.extracting,
            training_seconds=one.training, live_by_this=dear / (one.extracting + one.training),
        )
        for one in found
    ]  # fmt: skip


def main() -> None:
    """Measure, print, and write where that is wanted."""
    options = parse()
    asked = Asked.parse(f"{options.backbone}={options.weights}" if options.weights else options.backbone)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = part(options.data, options.rows, folder / "part", options.tests)
        found = [live(asked, data, folder / "runs", options)]
        found += [cached(asked, data, views, folder, options) for views in (1, options.views)]
    lines = lines_of(found)
    rows = [
        (line.way, "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in _numbers(line.accuracy))),
         f"{line.extracting_seconds:.1f}", f"{line.training_seconds:.1f}", f"{line.live_by_this:.1f}")
        for line in lines
    ]  # fmt: skip
    name = f"{asked.label} on {options.rows} rows of {plain_name(options.data)}"
    print(f"{name}, {options.epochs} epochs, {options.augment}, {options.seeds} seeds\n")
    print(markdown(("views", "test accuracy, % [95 %]", "extraction, s", "training, s", "live by this"), rows))
    if options.out:
        written = {"settings": vars(options), "machine": machine(), "ways": [asdict(line) for line in lines]}
        options.out.write_text(json.dumps(written, indent=2, default=str) + "\n", encoding="utf-8")


def _numbers(found: Measured) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits", help="data set, as extract-features takes it")
    parser.add_argument("--backbone", default="demo", help="backbone, as extract-features takes it")
    parser.add_argument("--weights", help="weights file, or random:SEED")
    parser.add_argument("--image-size", type=int, help="side of the input; default: the model's own")
    parser.add_argument("--rows", type=int, default=1000, help="labelled rows of train and val")
    parser.add_argument("--tests", type=int, default=300, help="test rows")
    parser.add_argument("--views", type=int, default=4, help="cached views that are compared with one")
    parser.add_argument("--augment", choices=tuple(RECIPES), default="crop", help="how pictures are changed")
    parser.add_argument("--head", default="linear", help="head, as train-head takes it")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of the head")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training rows")
    parser.add_argument("--batch-size", type=int, default=64, help="rows a step")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
