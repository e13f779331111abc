"""The verb `predict`: images in, class names out, through the backbone and the head of a run (`Predictor`)."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featurecache.checks import check
from featurecache.files import write_atomic
from featurecache.reports import Displayed, Table
from featurecache.stores import explained
from featurecache.threads import Computing, heeds_threads
from pipelines.predicting.predictor import Prediction as Prediction
from pipelines.predicting.predictor import Predictor as Predictor


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Computing):
    """Say what a trained run sees in images: backbone and head, from files to class names."""

    run_folder: Path
    """Run folder written by train-head, train-online or train-student."""
    inputs: tuple[Path, ...]
    """Image files, folders of images, or archives of one."""
    out: Path | None = None
    """CSV file to write, one line an image; default: print the first ones."""
    topk: int = 5
    """Classes to name for each image, most probable first."""
    weights: str | None = None
    """Where the backbone's weights are now, if their file has moved; must be the weights of the run."""
    batch_size: int = 64
    """Images per forward pass."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable image does: stop, or leave its line without an answer."""
    device: str = "cpu"
    """Device to run on: cpu, cuda, cuda:1, auto."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        check(
            (len(self.inputs) > 0, "name at least one image, folder or archive"),
            (self.topk > 0, f"topk must be positive, got {self.topk}"),
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
        )


@dataclass(frozen=True, slots=True)
class Predictions(Displayed):
    """The result of the verb."""

    found: list[Prediction]
    out: Path | None = None

    def tables(self) -> list[Table]:
        """Return the first twenty, or where all of them are."""
        if self.out is not None:
            return [Table("", (), (), (f"{self.out}: {len(self.found)} images",))]
        rows = [(p.image, _text(p.answer), _ranking(p), p.problem) for p in self.found[:20]]
        more = (f"and {len(self.found) - 20} more; --out FILE.csv writes all",) if len(self.found) > 20 else ()
        return [Table("predictions", ("image", "answer", "probabilities", "problem"), rows, more)]

    def json(self) -> list[dict[str, Any]]:
        """Return one entry an image."""
        return [{"image": p.image, "answer": p.answer, "top": dict(p.top), "problem": p.problem} for p in self.found]

    def csv(self) -> bytes:
        """Return the lines image, answer, then class and probability for every rank."""
        ranks = max((len(p.top) for p in self.found), default=0)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["image", "answer", "problem", *(f"{what}{i + 1}" for i in range(ranks) for what in ("class", "prob"))]
        )
        for p in self.found:
            writer.writerow(
                [p.image, _text(p.answer), p.problem, *(item for pair in p.top for item in (pair[0], f"{pair[1]:.6g}"))]
            )
        return text.getvalue().encode()


def _text(answer: Any) -> str:
    return "" if answer is None else str(answer)


def _ranking(prediction: Prediction) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in prediction.top)


@heeds_threads
def run(config: PredictConfig) -> Predictions:
    """Predict every input; write them all to `out` where it is given."""
    predictor = Predictor.load(config.run_folder, weights=config.weights, device=config.device)
    found = predictor.predict(
        config.inputs, config.topk, batch_size=config.batch_size, on_error=config.on_error, quiet=config.quiet
    )
    report = Predictions(found, config.out)
    if config.out is not None:
        with explained(f"write {config.out}"):
            config.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(config.out, report.csv())
    return report
