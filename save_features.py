"""Stage one: run a frozen backbone once over a data set and keep the features of every layer.

The batches lie on a fixed grid of row numbers, so that a run that was killed and started again computes the very batches
of a run that was not, and the finished stores are equal byte for byte.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from featurecache.backbones import Backbone, BackboneOptions, load_backbone
from featurecache.casting import Rounding, stored_form
from featurecache.checks import check
from featurecache.constant_features import warn_of_constant_features
from featurecache.datasets import Fingerprint, ImageDataset, open_dataset
from featurecache.decoders import Decoder, check_decoder, decoder_known_by
from featurecache.devices import default_precision, environment, resolve_device
from featurecache.division import DIVISION
from featurecache.errors import ConfigError
from featurecache.extracted import ExtractionReport
from featurecache.features import Header, Task
from featurecache.growing import divided_like
from featurecache.opening import Opening, opened
from featurecache.progress import Bar, Stopwatch
from featurecache.prompting import templates_asked
from featurecache.provenance import note
from featurecache.requests import header_of, request_of, requested
from featurecache.scoring import saved_scores
from featurecache.sources.images import check_feed, decoded, grid
from featurecache.stores import (
    FeatureStore,
    Gap,
    Shard,
    WriteBehind,
    explained,
    finish_share,
    format_of,
    gaps,
    open_store,
    progress,
    store_exists,
)  # fmt: skip
from featurecache.threads import Computing, heeds_threads
from featurecache.views import RECIPES, Views

log = logging.getLogger("featurecache")

PROBED = 512
"""Rows after which it is told what the store's dtype costs."""


@dataclass(frozen=True, kw_only=True)
class SaveFeaturesConfig(Computing):
    """Run a frozen backbone once over a data set and keep the features of every layer."""

    data: str
    """Data set: a folder, a .zip or .tar of one, or NAME[:ARGUMENT] such as digits."""
    backbone: str
    """Backbone: timm:NAME, demo, or python:package.module:function."""
    out: Path
    """Store to write; the suffix names the format (.zarr, .h5)."""
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
    prompts: str = "auto"
    """What CLIP's text side says of the class names: openai-imagenet, simple-imagenet, a file of templates, a text with {},
    or none; auto is "a photo of a {}." for models with a text side."""
    views: int = 1
    """Views of every image to keep: the clean one, then drawn ones, from which training picks one a step."""
    augment: str = "crop"
    """How views are drawn: flip, crop or strong."""
    seed: int = 0
    """Seed of the drawn views."""
    extend: bool = False
    """Add the layers, tokens, logits, prompts or views that an existing store lacks; nothing that is there is computed
    again."""
    shard: str | None = None
    """Compute only part i of n of the rows, beside processes that compute the others: i/n with i from 0 to n - 1, or auto:
    what torchrun set. The last one to end finishes the store."""
    take_over: bool = False
    """Take the place of a writer on another machine that was silent for five minutes."""
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
    precision: Literal["auto", "fp32", "bf16", "fp16", "tf32"] = "auto"
    """Arithmetic of the forward pass; auto is fp32 on a CPU and bf16 on a GPU that has it. fp32 is without TF32."""
    batch_size: int = 64
    """Images per forward pass; part of the identity, since results depend on it in the last bits."""
    commit_rows: int | None = None
    """Commit at least every so many rows (rounded up to the batch grid); default: every 30 seconds."""
    split_seed: int = 0
    """Seed of the automatic split, where the data brings none."""
    task: Task | None = None
    """How the labels of a manifest are read: classification, multilabel or regression; default: as they look."""
    fingerprint: Fingerprint = "sizes"
    """What recognises the data besides ids and labels: sizes of the files, content (reads them all once), or names."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable image does: stop the run, or leave its row marked as skipped."""
    decoder: Decoder = "pillow"
    """What decodes JPEG files: pillow, to the bit as timm does, or simplejpeg, faster and nearly the same; see the docs."""
    decode_threads: int | None = None
    """Threads that decode images; default: one for each core."""
    workers: int = 0
    """Processes that decode images ahead of the model, for a GPU that waits for them; 0: threads."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        check(
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
            (self.views > 0, f"views must be positive, got {self.views}"),
            (self.augment in RECIPES, f"augment must be one of {', '.join(RECIPES)}, got {self.augment!r}"),
            (self.commit_rows is None or self.commit_rows > 0, f"commit_rows must be positive, got {self.commit_rows}"),
            (self.image_size is None or self.image_size > 0, f"image_size must be positive, got {self.image_size}"),
            (
                self.decode_threads is None or self.decode_threads > 0,
                f"decode_threads must be positive, got {self.decode_threads}",
            ),
            *_shard_problems(self.shard),
            (self.workers >= 0, f"workers must not be negative, got {self.workers}"),
            (
                not self.workers or self.decode_threads is None,
                "workers are processes that decode instead of threads: give workers or decode_threads, not both",
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What a config names, as objects."""

    dataset: ImageDataset
    backbone: Backbone
    wanted: Header
    """Of the store that would hold all that is asked for."""
    held: Header | None
    """Of the store that is there."""


def work_of(config: SaveFeaturesConfig) -> Work:
    """List the images, build the model, and say what store would hold what is asked for."""
    format_of(config.out)  # what cannot be written is told before a backbone is built
    check_decoder(config.decoder)
    held = open_store(config.out).header if store_exists(config.out) else None
    dataset = open_dataset(config.data, split_seed=config.split_seed, task=config.task, fingerprint=config.fingerprint)
    if held is not None:
        dataset = divided_like(held, dataset, config.out)
    backbone = load_backbone(config.backbone, backbone_options(config))
    check_feed(backbone, dataset, workers=config.workers, decoder=config.decoder)
    request = requested(backbone, config.layers, config.tokens, logits=config.logits)
    views = Views(config.views, config.augment, config.seed)
    wanted = header_of(
        backbone, dataset, request, dtype=config.dtype, batch_size=config.batch_size, views=views,
        decoder=config.decoder,
        prompts=templates_asked(backbone, dataset, config.prompts, held),
    )  # fmt: skip
    return Work(dataset, backbone, wanted, held)


@heeds_threads
def run(config: SaveFeaturesConfig) -> ExtractionReport:
    """Extract, or go on where an earlier run of the same command stopped."""
    work = work_of(config)
    wanted, dataset, backbone = work.wanted, work.dataset, work.backbone
    store, dataset = opened(Opening(
        path=config.out, backbone=backbone, dataset=dataset, wanted=wanted, chunk_multiple=config.batch_size,
        extend=config.extend, shard=shard_of(config), take_over=config.take_over, quiet=config.quiet,
    ))  # fmt: skip
    try:
        report = save_features(backbone, dataset, store, config)
        new = store.header.rows - (work.held or wanted).rows
        more = (f"{new} new samples",) if new else ()
        there, before = store.header.contents, (work.held or wanted).contents
        return dataclasses.replace(
            report,
            added=(*more, *(name for name in there if name not in before)),
            beyond=tuple(name for name in there if name not in wanted.contents),
            division=str(store.header.dataset["split_rule"]) if DIVISION in store.header.dataset else "",
        )
    finally:
        store.close()


def _shard_problems(shard: str | None) -> list[tuple[bool, str]]:
    try:
        Shard.parsed("0/1" if shard is None else shard)
    except ConfigError as error:
        return [(False, problem) for problem in error.problems]
    return []


def shard_of(config: SaveFeaturesConfig) -> Shard | None:
    """Return the share of the rows that the config names; None: all."""
    return None if config.shard is None else Shard.parsed(config.shard)


def backbone_options(config: SaveFeaturesConfig) -> BackboneOptions:
    """Return how the config wants its backbone built."""
    device = resolve_device(config.device)
    if config.shard == "auto" and str(device) == "cuda":
        device = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")  # one GPU for each process of a machine
    return BackboneOptions(
        weights=config.weights,
        architecture=config.backbone_option,
        transform=config.transform,
        image_size=config.image_size,
        norm=config.norm,
        precision=default_precision(device) if config.precision == "auto" else config.precision,
        device=str(device),
    )


def save_features(
    backbone: Backbone, dataset: ImageDataset, store: FeatureStore, config: SaveFeaturesConfig
) -> ExtractionReport:
    """Compute what the store lacks, commit it, seal the store, and score every layer.

    A writer of a share does so with its rows alone; the one that ends last seals and scores the store.
    """
    watch, rounding, was_finished, rows = Stopwatch(), Rounding(), store.finished, len(store.share)
    share, shared = store.share, config.shard is not None and not was_finished
    kept, recomputed = progress(store)
    if not was_finished:
        with explained(f"write to {store.path}"):
            note(store.notes, facts(backbone, config, dataset.spec))
    if kept < rows:
        with Bar("extracting", rows, kept, config.quiet) as bar:
            _extract(backbone, dataset, store, config, watch=watch, bar=bar, rounding=rounding)
    with watch.waiting("write"):
        if shared:
            store = finish_share(config.out, store, take_over=config.take_over)
        elif not store.finished:
            store.finish()
    try:
        with watch.waiting("scores"):
            # a store that shares its rows is scored by the one who has sealed it
            scores = saved_scores(store) if store.finished and not (shared and store.read_only) else []
            if store.finished and not was_finished and not (shared and store.read_only):
                warn_of_constant_features(store)
        unread, left = _unread(store, share), sum(map(len, store.missing()))
        finished = store.finished
    finally:
        if shared:
            store.close()
    if kept < rows:
        with explained(f"write to {store.path}"):
            note(store.notes, costs(watch, rounding))
    return ExtractionReport(
        store=store.path,
        rows=rows,
        kept=kept,
        recomputed=recomputed,
        skipped=unread,
        share=share if shared else None,
        left=left,
        finished=finished,
        was_finished=was_finished,
        seconds=watch.elapsed,
        waited=dict(watch.seconds),
        scores=scores,
        rounding=rounding.relative(),
    )


def _unread(store: FeatureStore, share: range) -> int:
    """Return how many rows of a share hold no features because their image could not be read."""
    if store.readable([], []).all():
        return 0
    status = store.status()
    return int(((status != "ok") & (status != "") & (status != "deleted"))[share.start : share.stop].sum())


def _extract(
    backbone: Backbone,
    dataset: ImageDataset,
    store: FeatureStore,
    config: SaveFeaturesConfig,
    *,
    watch: Stopwatch,
    bar: Bar,
    rounding: Rounding,
) -> None:
    ids, told = dataset.table.sample_id, False
    # every row is readable in no array at all, unless it was skipped or deleted; the text of all takes 16 bytes a row
    deleted = set() if store.readable([], []).all() else set(np.flatnonzero(store.status() == "deleted").tolist())
    with WriteBehind(store, config.commit_rows) as behind:
        for gap in gaps(store):
            arrays, views = list(gap.lacking), {spec.name: numbers for spec, numbers in gap.lacking.items()}
            for rows, images, skipped in decoded(
                backbone, dataset, list(grid(gap.rows, config.batch_size)), watch, on_error=config.on_error,
                threads=config.decode_threads, workers=config.workers, decoder=decoder_known_by(store.header.backbone),
                views=Views.known_by(store.header.views, store.header.backbone), which=gap.views,
            ):  # fmt: skip
                store.begin(rows)
                with watch.waiting("model"):
                    outputs = _computed(backbone, images, gap, store.header.tokens)
                with watch.waiting("write"):
                    zero = {**skipped, **{row - rows.start: "deleted" for row in deleted.intersection(rows)}}
                    cast = partial(stored_form, outputs, arrays, [ids[row] for row in rows], zero, rounding)
                    behind.write(rows, cast, {rows[place]: reason for place, reason in skipped.items()}, views)
                bar.advance(len(rows), watch)
                if rounding.rows >= PROBED and not told:
                    log.info(rounded(rounding, config.dtype))
                    told = True
        with watch.waiting("write"):
            behind.commit()


def _computed(backbone: Backbone, images: Tensor, gap: Gap, tokens: Sequence[str]) -> list[dict[str, Tensor]]:
    """Return for every view of the gap, (V, B, 3, H, W), the arrays that lack it."""
    outputs = []
    for view, batch in zip(gap.views, images, strict=True):
        arrays = gap.arrays(view)
        found = backbone.forward(batch.to(backbone.device), request_of(tokens, arrays))
        outputs.append({spec.name: found[spec.name] for spec in arrays})
    return outputs


def rounded(rounding: Rounding, dtype: str) -> str:
    """Return in words what the dtype has cost so far."""
    errors = rounding.relative()
    least, worst = min(errors, key=errors.__getitem__), max(errors, key=errors.__getitem__)
    return (
        f"as {dtype} the first {rounding.rows} rows lose {errors[least]:.1e} ({least}) "
        f"to {errors[worst]:.1e} ({worst}) of their size"
    )


def costs(watch: Stopwatch, rounding: Rounding) -> dict[str, Any]:
    """Return what is recorded of a run that has computed all its rows."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "rows": rounding.rows,
        "seconds": round(watch.elapsed, 3),
        "waited": {what: round(seconds, 3) for what, seconds in watch.seconds.items()},
        "rounding": rounding.relative(),
    }


def facts(backbone: Backbone, config: SaveFeaturesConfig, data: str) -> dict[str, Any]:
    """Return what is recorded of a run that computes rows, and never compared."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "data": data,
        "split_seed": config.split_seed,
        "task": config.task,
        "origin": dict(backbone.origin),
        "device": str(backbone.device),
        "environment": environment(),
    }


if __name__ == "__main__":
    import cli

    cli.main(["extract-features", *cli.translated(sys.argv[1:])])
