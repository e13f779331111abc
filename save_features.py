"""Stage one: run a frozen backbone once over a data set and keep the features of every layer.

The batches lie on a fixed grid of row numbers, so that a run that was killed and started again computes the very batches
of a run that was not, and the finished stores are equal byte for byte.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

import logme
from featurecache.backbones import Backbone, BackboneOptions, Request, load_backbone
from featurecache.casting import as_numbers, stored_form
from featurecache.checks import check
from featurecache.datasets import ImageDataset, open_dataset
from featurecache.devices import default_precision, environment, resolve_device
from featurecache.errors import (
    BackboneError,
    StoreContentsError,
    StoreMismatchError,
)
from featurecache.features import ArraySpec, Header, differences, parse_layer_array
from featurecache.files import json_bytes, write_atomic
from featurecache.progress import Bar, Stopwatch
from featurecache.reports import Table
from featurecache.sources.images import decoded, grid
from featurecache.stores import FeatureStore, create_store, open_store

log = logging.getLogger("featurecache")


@dataclass(frozen=True, kw_only=True)
class SaveFeaturesConfig:
    """Run a frozen backbone once over a data set and keep the features of every layer."""

    data: str
    """Data set: a folder, a .zip or .tar of one, or NAME[:ARGUMENT] such as digits."""
    backbone: str
    """Backbone: timm:NAME, demo, or python:package.module:function."""
    out: Path
    """Store to write; the suffix names the format (.zarr)."""
    layers: str = "all"
    """Layers to keep: all, last, none, or indices such as 0,3,6-11."""
    tokens: str = "auto"
    """Kinds of token joined by +: cls, mean, patch-grid:K; auto is cls where there is one, else mean."""
    norm: Literal["final", "none"] = "final"
    """final: layers of the final width pass through the model's final norm; none: raw stream."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """dtype of the stored features."""
    logits: bool = False
    """Keep the logits of the model's own head too."""
    weights: str | None = None
    """Weights file (.safetensors, or a state dict), or random:SEED, instead of a download."""
    backbone_option: Mapping[str, Any] = field(default_factory=dict)
    """Architecture argument k=v, e.g. pad_type=same; may be given several times."""
    transform: Mapping[str, Any] = field(default_factory=dict)
    """Preprocessing override k=v: mean, std, size, crop, interpolation; may be given several times."""
    image_size: int | None = None
    """Side of the input in pixels; default: the model's own."""
    device: str = "cpu"
    """Device to run the backbone on: cpu, cuda, cuda:1, auto."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; auto is fp32 on a CPU and bf16 on a GPU that has it."""
    batch_size: int = 64
    """Images per forward pass; part of the identity, since results depend on it in the last bits."""
    commit_rows: int | None = None
    """Commit at least every so many rows (rounded up to the batch grid); default: every 30 seconds."""
    split_seed: int = 0
    """Seed of the automatic split, where the data brings none."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable image does: stop the run, or leave its row marked as skipped."""
    decode_threads: int = 2
    """Threads that decode images ahead of the model."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        check(
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
            (self.commit_rows is None or self.commit_rows > 0, f"commit_rows must be positive, got {self.commit_rows}"),
            (self.image_size is None or self.image_size > 0, f"image_size must be positive, got {self.image_size}"),
            (self.decode_threads > 0, f"decode_threads must be positive, got {self.decode_threads}"),
        )


@dataclass(frozen=True, kw_only=True)
class ExtractionReport:
    """What an extraction did."""

    store: Path
    rows: int
    kept: int
    """Rows that were committed before."""
    recomputed: int
    """Rows that a stopped run had begun to compute, but not committed."""
    skipped: int
    seconds: float
    waited: str
    scores: list[dict[str, Any]]

    def tables(self) -> list[Table]:
        """Return one table of the layers' scores."""
        computed = self.rows - self.kept
        notes = [f"{self.store}: {self.rows} rows, {computed} computed in {self.seconds:.1f} s {self.waited}".rstrip()]
        if self.kept == self.rows:
            notes = [f"{self.store} holds all of this already: nothing to do"]
        elif self.kept or self.recomputed:
            notes.append(f"went on: kept {self.kept} rows, recomputed {self.recomputed}")
        if self.skipped:
            notes.append(f"{self.skipped} rows are skipped: their images cannot be read")
        rows = [(score["array"], f"{score['score']:.4f}") for score in self.scores]
        return [Table("LogME of the training rows", ("array", "LogME"), rows, notes)]

    def json(self) -> dict[str, Any]:
        """Return everything the tables say."""
        names = ("rows", "kept", "recomputed", "skipped", "seconds", "scores")
        return {"store": str(self.store), **{name: getattr(self, name) for name in names}}


def run(config: SaveFeaturesConfig) -> ExtractionReport:
    """Extract, or go on where an earlier run of the same command stopped."""
    dataset = open_dataset(config.data, split_seed=config.split_seed)
    backbone = load_backbone(config.backbone, backbone_options(config))
    request = requested(backbone, config)
    header = header_of(backbone, dataset, request, config)
    if config.out.exists():
        store = reopened(config.out, header)
    else:
        store = create_store(config.out, header, dataset.table, chunk_multiple=config.batch_size)
    try:
        return save_features(backbone, dataset, store, config)
    finally:
        store.close()


def backbone_options(config: SaveFeaturesConfig) -> BackboneOptions:
    """Return how the config wants its backbone built."""
    device = resolve_device(config.device)
    return BackboneOptions(
        weights=config.weights,
        architecture=config.backbone_option,
        transform=config.transform,
        image_size=config.image_size,
        norm=config.norm,
        precision=default_precision(device) if config.precision == "auto" else config.precision,
        device=str(device),
    )


def requested(backbone: Backbone, config: SaveFeaturesConfig) -> Request:
    """Return the features that the config asks of this backbone.

    Raises:
        BackboneError: a layer or kind of token that the model does not have.
    """
    layers = parse_layers(config.layers, len(backbone.layers))
    kinds = backbone.tokens[:1] if config.tokens == "auto" else tuple(config.tokens.split("+"))
    return Request(layers=layers, tokens=kinds if layers else (), logits=config.logits)


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """Return the ascending indices that "all", "last", "none" or "0,3,6-11" means for `count` layers."""
    named = {"all": range(count), "last": range(max(count - 1, 0), count), "none": range(0)}
    if text in named:
        return tuple(named[text])
    try:
        spans = [[int(edge) for edge in part.split("-")] for part in text.split(",")]
        found = sorted({index for span in spans for index in range(span[0], span[-1] + 1)})
    except ValueError:
        raise BackboneError(f"--layers must be all, last, none, or indices such as 0,3,6-11; got {text!r}") from None
    if not found or found[-1] >= count:
        raise BackboneError(
            f"--layers {text} asks for layers that are not there: the model has layers 0 to {count - 1}"
        )
    return tuple(found)


def header_of(backbone: Backbone, dataset: ImageDataset, request: Request, config: SaveFeaturesConfig) -> Header:
    """Return the header of the store that would hold the requested features; one forward pass gives the shapes."""
    probe = torch.zeros(1, *backbone.input_size, device=backbone.device)
    shapes = {name: tuple(values.shape[1:]) for name, values in backbone.forward(probe, request).items()}
    return Header(
        backbone={**backbone.identity, "batch_size": config.batch_size},
        dataset=dataset.identity,
        rows=len(dataset),
        views=1,
        task=dataset.task,
        class_names=dataset.class_names,
        layers=tuple(layer for layer in backbone.layers if layer.index in request.layers),
        tokens=request.tokens,
        arrays=tuple(ArraySpec(name, shape, config.dtype) for name, shape in sorted(shapes.items())),
    )


def reopened(path: Path, wanted: Header) -> FeatureStore:
    """Open an existing store for going on.

    Raises:
        StoreMismatchError: it holds other features; names every field that differs.
        StoreContentsError: it holds these features, but not all that is asked for.
    """
    header = open_store(path).header
    fields = differences(
        {"backbone": wanted.backbone, "data": wanted.dataset}, {"backbone": header.backbone, "data": header.dataset}
    )
    if fields:
        lines = "\n".join(f"  {name}: the store has {theirs!r}, this run {ours!r}" for name, ours, theirs in fields)
        raise StoreMismatchError(f"{path} holds other features than this run would make:\n{lines}\nGive another --out.")
    absent = [spec.name for spec in wanted.arrays if spec not in header.arrays]
    if absent:
        raise StoreContentsError(
            f"{path} holds these features, but without {', '.join(absent)} as {wanted.arrays[0].dtype}. Give another --out."
        )
    return open_store(path, writable=True)


def save_features(
    backbone: Backbone, dataset: ImageDataset, store: FeatureStore, config: SaveFeaturesConfig
) -> ExtractionReport:
    """Compute what the store lacks, commit it, seal the store, and score every layer."""
    gaps = store.missing()
    lacking = sum(map(len, gaps))
    watch = Stopwatch()
    recomputed = sum(len(range(gap.start, min(gap.stop, store.interrupted_at))) for gap in gaps)
    if lacking and lacking < store.header.rows:
        log.info("going on: kept %d rows, recomputing %d", store.header.rows - lacking, recomputed)
    if lacking:
        _note_provenance(store.path, config, backbone)
        _extract(backbone, dataset, store, config, gaps, watch)
    if not store.finished:
        store.finish()
    skipped = sum(status != "ok" for status in store.status())
    return ExtractionReport(
        store=store.path,
        rows=store.header.rows,
        kept=store.header.rows - lacking,
        recomputed=recomputed,
        skipped=skipped,
        seconds=watch.elapsed,
        waited=f"({watch})" if lacking else "",
        scores=saved_scores(store),
    )


def _extract(
    backbone: Backbone,
    dataset: ImageDataset,
    store: FeatureStore,
    config: SaveFeaturesConfig,
    gaps: Sequence[range],
    watch: Stopwatch,
) -> None:
    header = store.header
    request = _request_of(header)
    done = header.rows - sum(map(len, gaps))
    batches = [rows for gap in gaps for rows in grid(gap, config.batch_size)]
    committed = time.monotonic()
    with Bar("extracting", header.rows, done, config.quiet) as bar:
        for rows, images, skipped in decoded(
            backbone, dataset, batches, watch, threads=config.decode_threads, on_error=config.on_error
        ):
            store.begin(rows)
            with watch.waiting("model"):
                outputs = backbone.forward(images.to(backbone.device), request)
            with watch.waiting("write"):
                ids = [dataset.table.sample_id[row] for row in rows]
                store.write(
                    rows,
                    stored_form(outputs, header.arrays, ids, skipped),
                    {rows[i]: why for i, why in skipped.items()},
                )
                if _is_due(store.uncommitted, config.commit_rows, committed):
                    store.commit()
                    committed = time.monotonic()
            bar.advance(len(rows), watch)
        with watch.waiting("write"):
            store.commit()


def _is_due(uncommitted: int, commit_rows: int | None, committed: float) -> bool:
    by_rows = commit_rows is not None and uncommitted >= commit_rows
    return by_rows or time.monotonic() - committed >= 30


def _request_of(header: Header) -> Request:
    names = {spec.name for spec in header.arrays}
    return Request(
        layers=tuple(layer.index for layer in header.layers),
        tokens=header.tokens,
        embedding="embedding" in names,
        logits="logits" in names,
    )


def _note_provenance(path: Path, config: SaveFeaturesConfig, backbone: Backbone) -> None:
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "data": str(Path(config.data).resolve()) if Path(config.data).exists() else config.data,
        "origin": dict(backbone.origin),
        "device": str(backbone.device),
        "environment": environment(),
    }
    with open(path / "provenance.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(facts, default=str) + "\n")


def score_layers(store: FeatureStore, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the LogME of every vector array over `rows` as stored, one pass each, in float64.

    An array is scored when one row is a vector (D,): the embedding and each layer's cls and mean.
    """
    targets = np.asarray(store.table().target)[rows]
    header = store.header
    task = header.task
    scores = []
    for spec in header.arrays:
        if len(spec.tail) != 1 or spec.name == "logits":
            continue
        moments = logme.Moments(spec.tail[0], len(header.class_names), task=task)
        for start in range(0, len(rows), 4096):
            piece = rows[start : start + 4096]
            moments.update(as_numbers(store.read(spec.name, piece), spec.dtype), targets[start : start + 4096])
        fitted = logme.LogME(task=task).fit_moments(moments)
        layer = parse_layer_array(spec.name)
        scores.append(
            {
                "array": spec.name,
                "layer": layer[1] if layer else None,
                "token": layer[0] if layer else None,
                "score": float(fitted.score_),
                "evidence": [float(value) for value in fitted.evidence_],
                "rows": len(rows),
            }
        )
    return scores


def saved_scores(store: FeatureStore) -> list[dict[str, Any]]:
    """Return the scores kept with a finished store, computing and keeping them the first time; [] without labels."""
    path = store.path / "scores" / "logme.json"
    if path.exists():
        kept: list[dict[str, Any]] = json.loads(path.read_text())
        return kept
    table = store.table()
    targets = np.asarray(table.target)
    labelled = targets >= 0 if targets.ndim == 1 else ~np.isnan(targets.astype(np.float64)).any(1)
    rows = np.flatnonzero((store.status() == "ok") & (np.asarray(table.split) == "train") & labelled)
    if len(rows) < 2:
        return []
    scores = score_layers(store, rows)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, json_bytes(scores))
    return scores


if __name__ == "__main__":
    import cli

    cli.main(["extract-features", *sys.argv[1:]])
