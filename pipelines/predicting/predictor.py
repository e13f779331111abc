"""Backbone and head of a run, built again and ready for images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featurecache.backbones import Backbone, BackboneOptions, Request, load_backbone
from featurecache.casting import as_tensor, stored_form
from featurecache.datasets import ImageDataset
from featurecache.decoders import Decoder, check_decoder, decoder_known_by
from featurecache.devices import resolve_device
from featurecache.errors import ConfigError, RunError, UnreadableSampleError, WeightsError
from featurecache.features import ArraySpec, Task, differences
from featurecache.mending import OF_THE_IMAGES
from featurecache.progress import Bar, Stopwatch
from featurecache.reports import Table
from featurecache.requests import request_of
from featurecache.rgb_conversion import RgbConversion
from featurecache.runs import read_trained
from featurecache.sources.images import decoded, grid
from heads._checkpoint import load_head
from pipelines._evaluation import answers, probabilities, said
from pipelines.objectives import PROBE
from pipelines.online.starting import trained_in
from pipelines.predicting.gathering import Pictures, gathered

T = TypeVar("T")
OnError = Literal["stop", "skip"]


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


class Predictor:
    """Backbone and head of a run, ready for images."""

    def __init__(self, backbone: Backbone, head: nn.Module, record: Mapping[str, Any]) -> None:
        self.backbone, self.head, self.record = backbone, head, record
        features = record["features"]
        self.task: Task = record["task"]
        self.class_names: list[str] = record["class_names"]
        self.decoder: Decoder = decoder_known_by(features["backbone"])
        self.convert = RgbConversion.from_identity(features.get("data", {}))
        """How the pictures that it was trained on became RGB."""
        self.tokens: list[str] = features["tokens"]
        self.arrays = [ArraySpec(a["name"], tuple(a["tail"]), a["dtype"]) for a in features["arrays"]]
        """What the head reads, in its order."""

    def __repr__(self) -> str:
        return f"<Predictor: {self.record['features']['backbone']['name']}, {self._described()}>"

    def _repr_html_(self) -> str:
        """Return what the predictor is made of, for a notebook."""
        features = self.record["features"]
        rows = [
            ("backbone", features["backbone"]["name"]), ("head", type(self.head).__name__), ("task", self.task),
            ("reads", ", ".join(spec.name for spec in self.arrays)), ("answers", ", ".join(self.class_names)),
        ]  # fmt: skip
        return Table("Predictor", ("", ""), rows)._repr_html_()

    def _described(self) -> str:
        kind = "values" if self.task == "regression" else "classes"
        return f"head {type(self.head).__name__} on {len(self.arrays)} arrays, {len(self.class_names)} {kind}"

    @classmethod
    def load(cls, run: str | Path, *, weights: str | None = None, device: str = "cpu") -> Predictor:
        """Load a run folder and build its backbone again.

        Raises:
            RunError: no finished run is there, or the backbone is not the one that made its features; names what differs.
            ConfigError: the decoder of its features is not installed.
            WeightsError: the weights file has moved; give `weights`.
        """
        record = read_trained(Path(run))[1]
        check_decoder(decoder_known_by(record["features"]["backbone"]))
        head, _ = load_head(Path(run))
        return cls(rebuilt(run, record, weights=weights, device=device), head.to(resolve_device(device)), record)

    def logits(
        self, dataset: ImageDataset, *, batch_size: int, on_error: OnError, quiet: bool = True
    ) -> tuple[Tensor, dict[int, str]]:
        """Return ((N, C) logits on the CPU, row -> why it has none); features pass through the store's dtype."""
        logits: list[Tensor] = []
        problems: dict[int, str] = {}
        watch = Stopwatch()
        taken = self._taken(dataset, self.arrays, batch_size=batch_size, on_error=on_error, watch=watch)
        with Bar("predicting", len(dataset), 0, quiet) as bar:
            for rows, arrays, skipped in taken:
                with torch.inference_mode():
                    found = self.head({k: v.to(self.backbone.device) for k, v in arrays.items()})
                logits.append(found.float().cpu())
                problems |= {rows[place]: why for place, why in skipped.items()}
                bar.advance(len(rows), watch)
        return torch.cat(logits), problems

    def _taken(
        self,
        dataset: ImageDataset,
        arrays: Sequence[ArraySpec],
        *,
        batch_size: int,
        on_error: OnError,
        watch: Stopwatch | None = None,
    ) -> Iterator[tuple[range, dict[str, Tensor], dict[int, str]]]:
        """Yield (rows, array name -> (B, ...) float32 on the CPU, as the store's dtype keeps it, place -> why skipped)."""
        batches, request = list(grid(range(len(dataset)), batch_size)), self._request(arrays)
        pictures = decoded(
            self.backbone, dataset, batches, watch or Stopwatch(), on_error=on_error, decoder=self.decoder
        )
        for rows, images, skipped in _explain_unreadable(pictures):
            outputs = [self.backbone.forward(images[0].to(self.backbone.device), request)]
            kept = stored_form(outputs, arrays, [dataset.table.sample_id[row] for row in rows], skipped)
            yield rows, {s.name: as_tensor(kept[s.name][:, 0], s.dtype).float() for s in arrays}, skipped

    def _request(self, arrays: Sequence[ArraySpec]) -> Request:
        return request_of(self.tokens, arrays)

    def predict(
        self,
        images: Pictures,
        topk: int = 5,
        *,
        batch_size: int = 64,
        on_error: OnError = "stop",
        quiet: bool = True,
    ) -> list[Prediction]:
        """Return one prediction an image.

        Args:
            images: PIL images, files, folders, archives, and arrays or tensors of one picture or of a batch, in any mixture,
                or one of them; `pixel_arrays` says which shapes and values. They are given as they were loaded: the run
                resizes, crops and normalises them.
            topk: classes to name for each image, most probable first.
            batch_size: images per forward pass.
            on_error: what an image that cannot be decoded does: "stop", or "skip" to leave it without an answer.
            quiet: show no progress.

        Raises:
            ConfigError: there is no image, or something that is none; lists all of these.
            DatasetNotFoundError: lists every path where nothing is.
            UnreadableSampleError: an image cannot be decoded, with `on_error="stop"`.
        """
        dataset = gathered(images, self.convert)
        logits, problems = self.logits(dataset, batch_size=batch_size, on_error=on_error, quiet=quiet)
        values = probabilities(logits, self.task)
        decided = answers(values, self.task)
        names = dataset.table.sample_id
        return [
            Prediction(names[row], None, problem=problems[row])
            if row in problems
            else Prediction(names[row], said(decided[row], self.class_names, self.task), self._top(values[row], topk))
            for row in range(len(dataset))
        ]

    def predict_proba(
        self, images: Pictures, *, batch_size: int = 64, on_error: OnError = "stop"
    ) -> npt.NDArray[np.float32]:
        """Return (N, C) probabilities in the order of `class_names`; NaN for an image that cannot be read.

        Raises:
            ConfigError: the run is a regression, which has none.
            DatasetNotFoundError, UnreadableSampleError: as `predict`.
        """
        if self.task == "regression":
            raise ConfigError(["this run is a regression: it gives values, not probabilities. Call predict"])
        logits, problems = self.logits(gathered(images, self.convert), batch_size=batch_size, on_error=on_error)
        values: npt.NDArray[np.float32] = probabilities(logits, self.task).numpy()
        values[list(problems)] = np.nan
        return values

    def embed(self, images: Pictures, *, batch_size: int = 64, on_error: OnError = "stop") -> npt.NDArray[np.float32]:
        """Return (N, D) float32, the backbone's pooled vector before any classifier; NaN for an image that cannot be read.

        Raises:
            DatasetNotFoundError, UnreadableSampleError: as `predict`.
        """
        pooled = ArraySpec("embedding", (self.backbone.dim,), "float32")
        return self._features(images, [pooled], batch_size, on_error)["embedding"]

    def features(
        self, images: Pictures, *, batch_size: int = 64, on_error: OnError = "stop"
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Return array name -> (N, ...) float32: what the head reads, as the store would hold it; NaN where unreadable.

        Raises:
            DatasetNotFoundError, UnreadableSampleError: as `predict`.
        """
        return self._features(images, self.arrays, batch_size, on_error)

    def _features(
        self, images: Pictures, arrays: Sequence[ArraySpec], batch_size: int, on_error: OnError
    ) -> dict[str, npt.NDArray[np.float32]]:
        parts = list(self._taken(gathered(images, self.convert), arrays, batch_size=batch_size, on_error=on_error))
        skipped = [rows[place] for rows, _, problems in parts for place in problems]
        found = {s.name: torch.cat([values[s.name] for _, values, _ in parts]).numpy() for s in arrays}
        for values in found.values():
            values[skipped] = np.nan
        return found

    def _top(self, values: Tensor, topk: int) -> tuple[tuple[str, float], ...]:
        order = (
            range(len(values))
            if self.task == "regression"
            else values.argsort(descending=True, stable=True)[:topk].tolist()
        )
        return tuple((self.class_names[i], float(values[i])) for i in order)


def _explain_unreadable(pictures: Iterator[T]) -> Iterator[T]:
    """Yield pictures; of one that cannot be read, say what leaving it out would do to a prediction.

    Raises:
        UnreadableSampleError: an image cannot be decoded.
    """
    try:
        yield from pictures
    except UnreadableSampleError as error:
        raise error.explain_skipping("nothing is predicted for it, and all other images are") from None


def rebuilt(
    run: str | Path, record: Mapping[str, Any], *, weights: str | None = None, device: str = "cpu", trained: bool = True
) -> Backbone:
    """Return the backbone that made the features of a run, with what the run trained in it where `trained` asks for it.

    Raises:
        RunError: the run does not say what it was, or has none; or another one was built: names what differs.
        WeightsError: its weights file has moved; give `weights`.
    """
    origin = dict(record["features"]["origin"])
    if record.get("objective", {}).get("name") == PROBE:
        raise RunError(
            f"{run} is a probe on what teachers say ({PROBE}): it has no backbone that could look "
            "at images. Train a student of these teachers, or a head on the store of one of them: featurecache train-head."
        )
    if not origin:
        raise RunError(
            f"{run} does not say what built its backbone: its store had no provenance.jsonl. Train it again."
        )
    name, place = origin.pop("name"), weights or origin.get("weights")
    known = {k: v for k, v in record["features"]["backbone"].items() if k not in OF_THE_IMAGES}
    if place and not place.startswith("random:") and not Path(place).exists():
        raise WeightsError(
            f"the backbone of {run} needs its weights, and {place} is not there. Give --weights FILE with where they are "
            f"now; they are recognised by their digest, {known.get('weights')}."
        )
    given = {**origin, "device": str(resolve_device(device)), **({"weights": weights} if weights else {})}
    backbone = load_backbone(name, BackboneOptions(**given))
    found = differences(dict(backbone.identity), known)
    if found:
        lines = "\n".join(f"  {field}: the run has {theirs!r}, this is {ours!r}" for field, ours, theirs in found)
        others = f", {place} holds others" if place and any(field == "weights" for field, _, _ in found) else ""
        raise RunError(
            f"the head in {run} was trained on features of another backbone:\n{lines}\n"
            f"Give --weights FILE with the weights of the run{others}."
        )
    if trained:
        trained_in(Path(run), backbone)
    return backbone
