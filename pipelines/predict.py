"""The verb `predict`, and `Predictor`: images in, class names out, through the backbone and the head of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from featurecache.backbones import Backbone, BackboneOptions, load_backbone
from featurecache.casting import as_tensor, stored_form
from featurecache.checks import check
from featurecache.datasets import ImageDataset, RowTable, is_archive, open_dataset, read_content, read_image
from featurecache.decoders import check_decoder, decoder_known_by
from featurecache.devices import resolve_device
from featurecache.errors import ConfigError, DatasetNotFoundError, RunError
from featurecache.features import ArraySpec, Task, differences
from featurecache.files import write_atomic
from featurecache.mending import OF_THE_IMAGES
from featurecache.progress import Stopwatch
from featurecache.reports import Table
from featurecache.requests import request_of
from featurecache.runs import read_run
from featurecache.sources.images import decoded, grid
from heads._checkpoint import load_head
from pipelines._evaluation import answers, probabilities, said
from pipelines._starting import trained_in


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Say what a trained run sees in images: backbone and head, from files to class names."""

    run_folder: Path
    """Run folder written by train-head."""
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

    def __post_init__(self) -> None:
        check(
            (len(self.inputs) > 0, "name at least one image, folder or archive"),
            (self.topk > 0, f"topk must be positive, got {self.topk}"),
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run says of one image."""

    image: str
    answer: str | float | list[float] | None
    """Class name; labels joined by |; values of a regression; None where the image cannot be read."""
    top: tuple[tuple[str, float], ...] = ()
    """(class, probability), most probable first; every value of a regression."""
    problem: str = ""
    """Why there is no answer."""


@dataclass(frozen=True, slots=True)
class Predictions:
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


class Predictor:
    """Backbone and head of a run, ready for images."""

    def __init__(self, backbone: Backbone, head: nn.Module, record: dict[str, Any]) -> None:
        self.backbone, self.head, self.record = backbone, head, record
        features = record["features"]
        self.task: Task = record["task"]
        self.class_names: list[str] = record["class_names"]
        self._decoder = decoder_known_by(features["backbone"])
        self._arrays = [ArraySpec(a["name"], tuple(a["tail"]), a["dtype"]) for a in features["arrays"]]
        self._request = request_of(features["tokens"], self._arrays)

    @classmethod
    def load(cls, run: str | Path, *, weights: str | None = None, device: str = "cpu") -> Predictor:
        """Load a run folder and build its backbone again.

        Raises:
            RunError: no finished run is there, or the backbone is not the one that made its features; names what differs.
            ConfigError: the decoder of its features is not installed.
            WeightsError: the weights file has moved; give `weights`.
        """
        record = read_run(Path(run))[1]
        check_decoder(decoder_known_by(record["features"]["backbone"]))
        head, _ = load_head(Path(run))
        origin = dict(record["features"]["origin"])
        if not origin:
            raise RunError(
                f"{run} does not say what built its backbone: its store had no provenance.jsonl. Train it again."
            )
        name = origin.pop("name")
        where = resolve_device(device)
        options = BackboneOptions(**{**origin, "device": str(where), **({"weights": weights} if weights else {})})
        backbone = load_backbone(name, options)
        known = {k: v for k, v in record["features"]["backbone"].items() if k not in OF_THE_IMAGES}
        found = differences(dict(backbone.identity), known)
        if found:
            lines = "\n".join(f"  {field}: the run has {theirs!r}, this is {ours!r}" for field, ours, theirs in found)
            raise RunError(
                f"the head in {run} was trained on features of another backbone:\n{lines}\nGive --weights FILE."
            )
        trained_in(Path(run), backbone)
        return cls(backbone, head.to(where), record)

    def logits(
        self, dataset: ImageDataset, *, batch_size: int, on_error: Literal["stop", "skip"]
    ) -> tuple[Tensor, dict[int, str]]:
        """Return ((N, C) logits on the CPU, row -> why it has none); features pass through the store's dtype."""
        batches = list(grid(range(len(dataset)), batch_size))
        logits: list[Tensor] = []
        problems: dict[int, str] = {}
        for rows, images, skipped in decoded(
            self.backbone, dataset, batches, Stopwatch(), on_error=on_error, decoder=self._decoder
        ):
            outputs = [self.backbone.forward(images[0].to(self.backbone.device), self._request)]
            ids = [dataset.table.sample_id[row] for row in rows]
            kept = stored_form(outputs, self._arrays, ids, skipped)
            arrays = {spec.name: as_tensor(kept[spec.name][:, 0], spec.dtype).float() for spec in self._arrays}
            with torch.inference_mode():
                logits.append(self.head({k: v.to(self.backbone.device) for k, v in arrays.items()}).float().cpu())
            problems |= {rows[place]: why for place, why in skipped.items()}
        return torch.cat(logits), problems

    def predict(
        self,
        images: Sequence[Image | str | Path],
        topk: int = 5,
        *,
        batch_size: int = 64,
        on_error: Literal["stop", "skip"] = "stop",
    ) -> list[Prediction]:
        """Return one prediction an image: PIL images, files, folders and archives, in any mixture.

        Raises:
            DatasetNotFoundError: lists every path where nothing is.
            UnreadableSampleError: an image cannot be decoded, with `on_error="stop"`.
        """
        dataset = _gathered(images)
        logits, problems = self.logits(dataset, batch_size=batch_size, on_error=on_error)
        values = probabilities(logits, self.task)
        decided = answers(values, self.task)
        names = dataset.table.sample_id
        return [
            Prediction(names[row], None, problem=problems[row])
            if row in problems
            else Prediction(names[row], said(decided[row], self.class_names, self.task), self._top(values[row], topk))
            for row in range(len(dataset))
        ]

    def _top(self, values: Tensor, topk: int) -> tuple[tuple[str, float], ...]:
        order = (
            range(len(values))
            if self.task == "regression"
            else values.argsort(descending=True, stable=True)[:topk].tolist()
        )
        return tuple((self.class_names[i], float(values[i])) for i in order)


def _gathered(images: Sequence[Image | str | Path]) -> ImageDataset:
    """Return images, files, folders and archives as one unlabelled data set, in the order given."""
    readers: list[Callable[[], Image]] = []
    contents: list[Callable[[], bytes | None]] = []
    names: list[str] = []
    paths = [Path(item) for item in images if not isinstance(item, Image)]
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise DatasetNotFoundError(f"there is no {', '.join(absent)}. Name images, folders of images, or archives.")
    for number, item in enumerate(images):
        if isinstance(item, Image):
            names.append(f"image {number}")
            readers.append(partial(item.convert, "RGB"))
            contents.append(lambda: None)
        elif Path(item).is_dir() or is_archive(Path(item)):
            within = open_dataset(item)
            names += [f"{item}/{name}" for name in within.table.sample_id]
            readers += [partial(within.read, row) for row in range(len(within))]
            contents += [partial(within.content, row) for row in range(len(within))]
        else:
            names.append(str(item))
            readers.append(partial(read_image, Path(item)))
            contents.append(partial(read_content, Path(item)))
    if not names:
        raise ConfigError(["there is no image to look at"])
    blank = [""] * len(names)
    table = RowTable(sample_id=names, target=np.full(len(names), -1), split=blank, domain=blank, group=blank)
    return ImageDataset(
        name="images", spec="", table=table, class_names=(), task="classification",
        read=lambda row: readers[row](), content=lambda row: contents[row](), identity={},
    )  # fmt: skip


def run(config: PredictConfig) -> Predictions:
    """Predict every input; write them all to `out` where it is given."""
    predictor = Predictor.load(config.run_folder, weights=config.weights, device=config.device)
    found = predictor.predict(config.inputs, config.topk, batch_size=config.batch_size, on_error=config.on_error)
    report = Predictions(found, config.out)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(config.out, report.csv())
    return report
