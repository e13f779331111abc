"""How much sooner are the features there than by the flow of the papers?

    python benchmarks/papers_flow.py [--model vit_tiny_patch16_224] [--width 1600 --height 1200] [--images 128] [--device cuda]

The papers' flow is one process: torch's DataLoader without workers over an ImageFolder with the model's own transform, the
layers of each batch kept in a list, and all of them joined in memory at the end. Ours is an extraction into a new store,
from the first image to the sealed store. Both take the same model with random weights, the same images, batch size,
precision and layers, in turns; building the model, listing the images and scoring belong to neither.

- **exact**: with the decoder `pillow`, whose features are those of the papers' flow to the last bit before they are
  rounded to the store's dtype. Held against: at least 1.1 on a CPU, 2 on a GPU.
- **fast**: with the decoder `simplejpeg`. Held against: at least 2.

The ratio says as much of the model as of us: with a large one both flows wait for it. So it is held where decoding matters:
by default a ViT-Tiny over photographs of two megapixels.
`--workers` decodes in processes, whose start (seconds) is in the time: take thousands of images with them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _images import draw
from _reporting import Ratio, conclude, in_turns, middle, seconds
from extraction import Bench, extract, prepared

from featurecache.requests import requested

CPU_LIMIT, GPU_LIMIT, FAST_LIMIT = 1.1, 2.0, 2.0


def papers_flow(bench: Bench, folder: Path) -> float:
    """Seconds of the papers' flow over a folder."""
    backbone, config = bench.backbone, bench.config
    request = requested(backbone, config.layers, config.tokens)

    def run() -> None:
        loader = DataLoader(ImageFolder(folder, backbone.transform), config.batch_size)
        found: dict[str, list[Tensor]] = {}
        for images, _ in loader:
            for name, values in backbone.forward(images.to(backbone.device), request).items():
                found.setdefault(name, []).append(values.cpu())
        joined = {name: torch.cat(parts) for name, parts in found.items()}
        assert all(len(values) == len(bench.dataset) for values in joined.values())

    return seconds(run)


def measure(bench: Bench, folder: Path, options: argparse.Namespace) -> list[Ratio]:
    """Time of the papers' flow over that of ours, by each decoder."""
    exact, fast = bench.asking(decoder="pillow"), bench.asking(decoder="simplejpeg")
    extract(fast)  # allocators, threads, files in the page cache
    found = in_turns([lambda: papers_flow(bench, folder), lambda: extract(exact), lambda: extract(fast)], options.turns)
    rates = [len(bench.dataset) / middle([turn[place] for turn in found]) for place in range(3)]
    figures = dict(zip(("papers images/s", "pillow images/s", "simplejpeg images/s"), rates, strict=True))
    limits = (GPU_LIMIT if bench.backbone.device.type == "cuda" else CPU_LIMIT, FAST_LIMIT)
    what = f"{options.model}, {options.width} x {options.height}"
    ratios = [[turn[0] / turn[place] for turn in found] for place in (1, 2)]
    return [
        Ratio(what=f"{what}, by {decoder}", against="the papers' flow", value=middle(values), limit=limit,
              of_each_turn=values, figures=figures if decoder == "pillow" else {})
        for decoder, values, limit in zip(("pillow", "simplejpeg"), ratios, limits, strict=True)
    ]  # fmt: skip


def main() -> int:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        images = Path(name, "images")
        draw(images, options.images, options.width, options.height)
        settings = SimpleNamespace(**vars(options), decoder="pillow", decode_threads=len(os.sched_getaffinity(0)))
        bench = prepared(str(images), Path(name, "features.zarr"), settings, model=options.model)
        ratios = measure(bench, images, options)
    title = f"Extraction end to end by {options.model} on {options.device}, {options.images} JPEG files"
    given = {key: value for key, value in vars(options).items() if key not in ("out", "folder")}
    return conclude(title, ratios, given, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="timm model, built with random weights")
    parser.add_argument("--images", type=int, default=128, help="JPEG files to draw")
    parser.add_argument("--width", type=int, default=1600, help="their width in pixels")
    parser.add_argument("--height", type=int, default=1200)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode for our flow; 0: threads")
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each, in turns; the middle ratio counts")
    parser.add_argument(
        "--folder", type=Path, help="where images and stores are made, for a while; default: the system's"
    )
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
