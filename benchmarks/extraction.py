"""How much of the machine does an extraction turn into features?

    python benchmarks/extraction.py [--model vit_tiny_patch16_224 --images 512] [--device cuda] [--workers N]
        [--decoder simplejpeg] [--data PATH] [--out FILE]

Everything runs on one model with random weights and the same images, in turns:

- **limit**: an extraction, decoding and writing included, against what its two parts allow: the bare model on a batch
  in memory (same batch size and precision), and decoding alone in one process a core. On a CPU both share the cores,
  so the limit is 1 / (1/forward + 1/decode); on a GPU it is the smaller of the two. Held against: at least 0.95.
- **layers**: all layers as `cls+mean+patch-grid:4` (`mean+patch-grid:4` without a class token) with their scores at
  100 classes, against the embedding alone without scores. Held against: at least 0.95 of its speed.
- **scores**: LogME of the embedding and of every layer, against the extraction without it. Held against: at most 1.05 times
  the time.
- **tokens**: every token of every layer, against the smallest of what the model (with decoding, as above) and the disk
  allow, where the disk writes the same bytes in one file and syncs it. Held against: at least 0.9.
- **memory**: the most that extraction and scoring add to a fresh process, by a tiny model, against a tenth of the images.
  Held against: at most 1.1 times. Pages of mapped files are the kernel's, which takes them back at need: not counted.

The time of an extraction is proportional to its images, that of scoring is not: the eigenvalues of a D x D matrix cost the
same for few as for many. So scores are measured over `--score-rows` rows, as many as a small data set has (random
features in a store with the same arrays), and put beside the time in which that many images would be extracted.

An extraction is `save_features.save_features` into a new store, from the first image to the sealed store; building the model
and listing the images come before; starting `--workers` (some seconds of imports) does not, so take many images with them. On a CPU the limit holds for torch on all cores, as it is by default (`--threads`): with
fewer, decoding has cores of its own. The fixed part (an empty store, its seal: some dozens of fsyncs) is in the time, so
take images enough for a minute. `--data` takes any labelled data set instead of drawn JPEG files.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _images import CLASSES, decoding, draw
from _reporting import Ratio, conclude, in_turns, middle, seconds
from _stores import random_store

import save_features
from featurecache.backbones import Backbone, load_backbone
from featurecache.datasets import ImageDataset, open_dataset
from featurecache.decoders import Decoder
from featurecache.devices import default_precision, resolve_device
from featurecache.features import Header
from featurecache.requests import header_of, requested
from featurecache.scoring import saved_scores
from featurecache.stores import create_store, open_store
from featurecache.views import Views
from save_features import SaveFeaturesConfig, backbone_options

SPEED_LIMIT, LAYERS_LIMIT, SCORES_LIMIT, TOKENS_LIMIT, MEMORY_LIMIT = 0.95, 0.95, 1.05, 0.9, 1.1
REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY_BATCH = 8
"""Images of a batch where memory is measured: also a tenth of the images are batches enough for allocators to settle."""


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What is extracted from what, and where to."""

    backbone: Backbone
    dataset: ImageDataset
    config: SaveFeaturesConfig

    def asking(self, **changes: Any) -> Bench:
        return replace(self, config=replace(self.config, **changes))


def prepared(data: str, store: Path, options: argparse.Namespace, *, model: str) -> Bench:
    """Build the model and list the images."""
    device = resolve_device(options.device)
    config = SaveFeaturesConfig(
        data=data, backbone=f"timm:{model}", out=store, weights="random:0", device=options.device, quiet=True,
        batch_size=options.batch_size, decode_threads=None if options.workers else options.decode_threads,
        workers=options.workers, decoder=options.decoder,
        precision=default_precision(device) if options.precision == "auto" else options.precision,
    )  # fmt: skip
    return Bench(load_backbone(config.backbone, backbone_options(config)), open_dataset(data), config)


def header_for(bench: Bench) -> Header:
    """Return the header of the store that the extraction writes."""
    backbone, config = bench.backbone, bench.config
    request = requested(backbone, config.layers, config.tokens)
    return header_of(
        backbone, bench.dataset, request, dtype=config.dtype, batch_size=config.batch_size, views=Views(),
        decoder=config.decoder,
    )  # fmt: skip


def extract(bench: Bench) -> float:
    """Seconds of one extraction into a new store, without the scores that end it."""
    dataset, config, header = bench.dataset, bench.config, header_for(bench)
    shutil.rmtree(config.out, ignore_errors=True)

    def run() -> None:
        store = create_store(config.out, header, dataset.table, chunk_multiple=config.batch_size)
        save_features.save_features(bench.backbone, dataset, store, config)
        store.close()

    with mock.patch.object(save_features, "saved_scores", lambda store: []):
        return seconds(run)


def scored_store(bench: Bench, rows: int) -> Path:
    """Return a store of `rows` random rows with every array of the extraction that is scored."""
    header, path = header_for(bench), bench.config.out.with_name("scores.zarr")
    vectors = tuple(spec for spec in header.arrays if len(spec.tail) == 1)
    shutil.rmtree(path, ignore_errors=True)
    random_store(path, replace(header, rows=rows, arrays=vectors, class_names=tuple(map(str, range(CLASSES)))))
    return path


def scoring(path: Path) -> float:
    """Seconds of scoring every array of a finished store."""
    shutil.rmtree(path / "scores", ignore_errors=True)
    return seconds(lambda: saved_scores(open_store(path)))


def forward_seconds(bench: Bench, images: Tensor) -> float:
    """Seconds of the bare model for all images, from a batch that lies on its device."""
    backbone, rows, size = bench.backbone, len(bench.dataset), bench.config.batch_size
    precision = REDUCED.get(bench.config.precision)
    counts = [size] * (rows // size) + ([rows % size] if rows % size else [])
    with torch.inference_mode(), torch.autocast(images.device.type, precision, enabled=precision is not None):

        def run() -> None:
            for count in counts:
                backbone.module(images[:count])
            if images.device.type == "cuda":
                torch.cuda.synchronize(images.device)

        return seconds(run)


def measure_limit(bench: Bench, turns: int, score_rows: int) -> list[Ratio]:
    """Speed of an extraction over what its parts allow; what scoring adds to its time."""
    images = torch.rand(bench.config.batch_size, *bench.backbone.input_size, device=bench.backbone.device)
    cores, count, store = len(os.sched_getaffinity(0)), len(bench.dataset), scored_store(bench, score_rows)
    forward_seconds(bench, images)
    with decoding(bench.backbone, bench.dataset, cores, bench.config.decoder) as decode:
        acts = [lambda: forward_seconds(bench, images), decode, lambda: extract(bench), lambda: scoring(store)]
        found = in_turns(acts, turns)
    join = max if bench.backbone.device.type == "cuda" else sum
    ratios = [join((forward, decode)) / extracted for forward, decode, extracted, _ in found]
    scored = [1 + scores / (extracted * score_rows / count) for *_, extracted, scores in found]
    names = ("forward", f"decode on {cores} cores", "extraction")
    rates = {f"{name} images/s": count / middle([turn[i] for turn in found]) for i, name in enumerate(names)}
    costs = {"images": score_rows, "scores s": middle([turn[3] for turn in found])}
    return [
        Ratio(what="extraction, default layers", against="the limit of model and decoding", value=middle(ratios),
              limit=SPEED_LIMIT, of_each_turn=ratios, figures=rates),
        Ratio(what=f"extraction with LogME of {len(bench.backbone.layers)} layers", against="without", value=middle(scored),
              limit=SCORES_LIMIT, bound="at most", of_each_turn=scored, figures=costs),
    ]  # fmt: skip


def measure_layers(bench: Bench, turns: int, score_rows: int) -> list[Ratio]:
    """Speed of keeping and scoring everything over that of keeping the embedding alone."""
    tokens = "cls+mean+patch-grid:4" if "cls" in bench.backbone.tokens else "mean+patch-grid:4"
    alone, everything = bench.asking(layers="none"), bench.asking(layers="all", tokens=tokens)
    store, share = scored_store(everything, score_rows), len(bench.dataset) / score_rows
    extract(alone)  # allocators and threads of the first run
    found = in_turns([lambda: extract(alone), lambda: extract(everything), lambda: scoring(store)], turns)
    ratios, unscored = [a / (b + s * share) for a, b, s in found], [a / b for a, b, _ in found]
    names = ("embedding s", "all layers s", f"scores of {score_rows} rows s")
    figures = {name: middle([turn[place] for turn in found]) for place, name in enumerate(names)}
    what, against = f"all layers, {tokens}", "the embedding alone, no scores"
    return [
        Ratio(what=f"{what}, scores", against=against, value=middle(ratios), limit=LAYERS_LIMIT, of_each_turn=ratios,
              figures=figures),
        Ratio(what=f"{what}, no scores", against=against, value=middle(unscored), of_each_turn=unscored),
    ]  # fmt: skip


def measure_tokens(bench: Bench, turns: int) -> Ratio:
    """Speed of keeping every token over the least that model, decoding and disk allow."""
    everything, cores = bench.asking(tokens="all"), len(os.sched_getaffinity(0))
    images = torch.rand(bench.config.batch_size, *bench.backbone.input_size, device=bench.backbone.device)
    row = sum(spec.row_bytes for spec in header_for(everything).arrays)
    blob, count = os.urandom(row), len(bench.dataset)

    def write() -> float:
        with tempfile.NamedTemporaryFile(dir=bench.config.out.parent) as file:

            def run() -> None:
                for _ in range(count):
                    file.write(blob)
                file.flush()
                os.fsync(file.fileno())

            return seconds(run)

    with decoding(bench.backbone, bench.dataset, cores, bench.config.decoder) as decode:
        acts = [lambda: forward_seconds(bench, images), decode, write, lambda: extract(everything)]
        extract(everything)
        found = in_turns(acts, turns)
    join = max if bench.backbone.device.type == "cuda" else sum
    ratios = [max(join((forward, decode)), disk) / extracted for forward, decode, disk, extracted in found]
    names = ("forward", f"decode on {cores} cores", "disk", "extraction")
    rates = {f"{name} images/s": count / middle([turn[i] for turn in found]) for i, name in enumerate(names)}
    return Ratio(
        what="every token of every layer", against="the limit of model, decoding and disk", value=middle(ratios),
        limit=TOKENS_LIMIT, of_each_turn=ratios, figures={"MiB a row": row / 2**20, **rates},
    )  # fmt: skip


def anonymous_mib() -> float:
    """MiB of this process that no file backs, and that the kernel cannot take back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def peak_of(rows: int, data: str, options: argparse.Namespace) -> float:
    """MiB that extracting and scoring the first `rows` images adds; run in a fresh process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        bench = prepared(data, Path(name, "memory.zarr"), options, model=options.memory_model)
        bench = replace(bench, dataset=first_rows(bench.dataset, rows)).asking(batch_size=MEMORY_BATCH)
        before, seen, done = anonymous_mib(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.002):
                seen.append(anonymous_mib())

        watcher = threading.Thread(target=watch)
        watcher.start()
        extract(bench)
        scoring(bench.config.out)
        done.set()
        watcher.join()
        return max(seen) - before


def first_rows(dataset: ImageDataset, rows: int) -> ImageDataset:
    """The data set as if it ended after `rows`; all of them for training, so that all are scored."""
    table, part = dataset.table, slice(rows)
    cut = replace(
        table, sample_id=table.sample_id[part], target=np.arange(rows) % CLASSES, split=["train"] * rows,
        domain=table.domain[part], group=table.group[part],
    )  # fmt: skip
    return replace(dataset, table=cut)


def measure_memory(folder: Path, options: argparse.Namespace) -> Ratio:
    """Peak over that with a tenth of the images."""
    rows, images = options.memory_images, folder / "memory"
    draw(images, rows, 64)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        acts = [lambda n=count: pool.apply(peak_of, (n, str(images), options)) for count in (rows // 10, rows)]
        found = in_turns(acts, options.turns)
    ratios = [many / few for few, many in found]
    figures = {"MiB": middle([many for _, many in found]), "MiB of a tenth": middle([few for few, _ in found])}
    return Ratio(
        what=f"peak memory, {rows} images by {options.memory_model}", against=f"{rows // 10} images", value=middle(ratios),
        limit=MEMORY_LIMIT, bound="at most", of_each_turn=ratios, figures=figures,
    )  # fmt: skip


def main() -> int:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "folder")}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        data = options.data or str(Path(name, "images"))
        if options.data is None:
            draw(Path(data), options.images, options.side)
        bench, ratios = prepared(data, Path(name, "features.zarr"), options, model=options.model), []
        if "limit" in options.only:
            ratios += measure_limit(bench, options.turns, options.score_rows)
        if "layers" in options.only:
            ratios += measure_layers(bench, options.turns, options.score_rows)
        if "tokens" in options.only:
            ratios.append(measure_tokens(bench, options.turns))
        if "memory" in options.only:
            ratios.append(measure_memory(Path(name), options))
    title = f"Extraction by {options.model} on {options.device}, {len(bench.dataset)} images"
    return conclude(title, ratios, settings, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="vit_base_patch16_224", help="timm model, built with random weights")
    parser.add_argument("--images", type=int, default=128, help="JPEG files to draw")
    parser.add_argument("--side", type=int, default=256, help="their side in pixels")
    parser.add_argument("--data", help="a labelled data set to take instead")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--decode-threads", type=int, default=cores, help="threads that decode for the extraction")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode instead of threads")
    parser.add_argument(
        "--decoder", choices=get_args(Decoder), default="pillow", help="of the extraction and the limit"
    )
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each, in turns; the middle ratio counts")
    parser.add_argument("--score-rows", type=int, default=5000, help="rows over which scores are measured")
    parser.add_argument("--memory-model", default="test_vit", help="timm model whose extraction's memory is measured")
    parser.add_argument(
        "--memory-images", type=int, default=2000, help="its images; a tenth must be more than its width"
    )
    parser.add_argument(
        "--only", nargs="+", choices=(known := ("limit", "layers", "tokens", "memory")), default=list(known)
    )
    parser.add_argument(
        "--folder", type=Path, help="where images and stores are made, for a while; default: the system's"
    )
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
