"""The verb `demo`: the whole pipeline on data and a backbone that need no download, in one process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.checks import Config
from featurecache.datasets import ImageDataset, open_dataset
from featurecache.reports import Displayed, Report, Table
from featurecache.stores import open_store
from pipelines import rank
from pipelines.predict import Predictor
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from pipelines.training.reporting import TrainReport
from save_features import SaveFeaturesConfig
from save_features import run as extract

HEADS = (("linear", None), ("ridge", "concat"), ("lfa", None))
"""(head, layers) that are trained; None: the layers the head reads by itself."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """Run the whole pipeline once: extract all layers of `demo` over `digits`, score them, train three heads, predict."""

    out: Path = Path("featurecache-demo")
    """Folder for the store and the runs."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True, slots=True)
class DemoReport(Displayed):
    """What every step gave."""

    extracted: Report
    ranked: Report
    runs: list[TrainReport]
    seen: list[tuple[str, str, str]]
    """(image, true class, predicted class)."""
    out: Path
    seconds: float

    def tables(self) -> list[Table]:
        """Return the scores of all layers, the heads beside each other, five predictions and what to do next."""
        rows = [
            (r.record["head"], r.folder, *(_interval(r.record["metrics"][split]["top1"]) for split in ("val", "test")))
            for r in self.runs
        ]
        notes = (
            f"Store and runs are in {self.out}; all of it took {self.seconds:.1f} s.",
            f"Next: featurecache info {self.out / 'digits.zarr'}, or featurecache extract-features YOUR_FOLDER "
            "--backbone timm:vit_tiny_patch16_224 --out yours.zarr",
        )
        said = [note for table in self.extracted.tables() for note in table.notes]
        return [
            Table("", (), (), said),
            *self.ranked.tables(),
            Table("heads on the cached features, accuracy (95 % intervals)", ("head", "run", "val", "test"), rows),
            Table("five test images through backbone and head", ("image", "true", "predicted"), self.seen, notes),
        ]

    def json(self) -> dict[str, Any]:
        """Return every step's value."""
        return {
            "extraction": self.extracted.json(), "scores": self.ranked.json(), "runs": [r.json() for r in self.runs],
            "predictions": self.seen, "seconds": self.seconds,
        }  # fmt: skip


def _interval(measured: dict[str, float]) -> str:
    return f"{100 * measured['value']:.1f} % [{100 * measured['low']:.1f}, {100 * measured['high']:.1f}]"


def run(config: DemoConfig) -> DemoReport:
    """Do every step through the same functions as the verbs; what is there already is not done again."""
    started, store = time.perf_counter(), config.out / "digits.zarr"
    config.out.mkdir(parents=True, exist_ok=True)
    extracted = extract(SaveFeaturesConfig(data="digits", backbone="demo", out=store, quiet=config.quiet))
    ranked = rank.run(rank.RankConfig(stores=(store,)))
    runs = [
        train(
            TrainHeadConfig(store=store, head=head, layers=layers, out=config.out / head, epochs=50, quiet=config.quiet)
        )
        for head, layers in HEADS
    ]
    best = max(runs, key=lambda r: float(r.record["metrics"]["val"]["top1"]["value"]))
    seen = _look(open_dataset("digits"), np.asarray(open_store(store).table().split), best.folder)
    return DemoReport(extracted, ranked, runs, seen, config.out, time.perf_counter() - started)


def _look(dataset: ImageDataset, splits: np.ndarray, run_folder: Path) -> list[tuple[str, str, str]]:
    rows = np.flatnonzero(splits == "test")[:: max(1, int((splits == "test").sum()) // 5)][:5]
    found = Predictor.load(run_folder).predict([dataset.read(int(row)) for row in rows], topk=1)
    names = dataset.class_names
    return [
        (dataset.table.sample_id[row], names[int(dataset.table.target[row])], str(prediction.answer))
        for row, prediction in zip(rows, found, strict=True)
    ]
