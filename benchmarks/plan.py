"""Does `plan` say what an extraction then takes?

    python benchmarks/plan.py [--data PATH ... ] [--images 512] [--device cuda] [--out FILE]

For each of three configurations, first `plan`, then the extraction that it speaks of, as the command line would run both:

- all class tokens of a ViT-Tiny, float16, Zarr;
- the pooled stages of a MobileNetV2, float32, HDF5;
- every token of a ViT-Tiny in two views, bfloat16, Zarr.

Held against: the bytes of every array within 2 % of its files (of HDF5: of its data in the file), minutes within 25 %. A machine
that others use at the same time is not the same for the plan and the run; the larger the data, the less that counts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _images import draw
from _reporting import Ratio, conclude, middle, seconds

import save_features
from pipelines import plan
from pipelines.plan import Plan, PlanConfig
from save_features import SaveFeaturesConfig

BYTES_LIMIT, MINUTES_LIMIT = 0.98, 0.75
"""The smaller by the larger of what was planned and what was seen."""

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ViT-Tiny, cls, float16, .zarr": {"backbone": "timm:vit_tiny_patch16_224"},
    "MobileNetV2, mean, float32, .h5": {"backbone": "timm:mobilenetv2_100", "dtype": "float32", "suffix": ".h5"},
    "ViT-Tiny, all, 2 views, bfloat16, .zarr": {
        "backbone": "timm:vit_tiny_patch16_224", "tokens": "all", "views": 2, "dtype": "bfloat16",
    },
}  # fmt: skip


def nearness(planned: float, seen: float) -> float:
    """Return the smaller by the larger: 1 where both are equal."""
    return min(planned, seen) / max(planned, seen)


def array_bytes(path: Path, name: str) -> int:
    """Return the bytes that an array takes in a finished store."""
    if path.is_dir():
        return sum(file.stat().st_size for file in (path / name / "c").rglob("*") if file.is_file())
    with h5py.File(path) as file:
        return int(file[name].id.get_storage_size())


def planned_and_run(settings: dict[str, Any], turns: int) -> list[tuple[Plan, float]]:
    """Return what was planned, and the seconds that the extraction took, of every turn."""
    found = []
    for turn in range(turns):
        given = {**settings, "out": settings["out"].with_stem(f"features-{turn}")}
        planned = plan.run(PlanConfig(**given))
        found.append((planned, seconds(lambda given=given: save_features.run(SaveFeaturesConfig(**given)))))
    return found


def ratios_of(name: str, settings: dict[str, Any], turns: int) -> list[Ratio]:
    found = planned_and_run(settings, turns)
    sizes = [
        nearness(size, array_bytes(planned.out, array))
        for planned, _ in found
        for array, size in planned.arrays.items()
        if array in planned.shapes
    ]
    times = [nearness(60 * planned.minutes, seen) for planned, seen in found]
    figures = {
        "planned s": middle([60 * planned.minutes for planned, _ in found]),
        "seen s": middle([seen for _, seen in found]), "planned MiB": found[0][0].total_bytes / 2**20,
    }  # fmt: skip
    return [
        Ratio(what=f"{name}: bytes of the worst array", against="its files", value=min(sizes), limit=BYTES_LIMIT),
        Ratio(what=f"{name}: minutes", against="the run", value=middle(times), limit=MINUTES_LIMIT,
              of_each_turn=times, figures=figures),
    ]  # fmt: skip


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        data = options.data or str(Path(name, "images"))
        if options.data is None:
            draw(Path(data), options.images, options.side)
        ratios = []
        for number, (title, changes) in enumerate(CONFIGURATIONS.items()):
            given = {"weights": "random:0", **changes}
            out = Path(name, str(number), f"features{given.pop('suffix', '.zarr')}")
            settings = {**given, "data": data, "out": out, "device": options.device, "quiet": True}
            ratios += ratios_of(title, settings, options.turns)
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "folder")}
    return conclude(f"What was planned against what was, on {options.device}", ratios, settings, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1024, help="JPEG files to draw")
    parser.add_argument("--side", type=int, default=256, help="their side in pixels")
    parser.add_argument("--data", help="a data set to take instead")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument(
        "--turns", type=int, default=1, help="plans and runs of each configuration; the middle ratio counts"
    )
    parser.add_argument("--folder", type=Path, help="where images and stores are made, for a while")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
