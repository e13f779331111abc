"""Leave-one-domain-out on digits in three styles: what each rule of selection comes to, and how long the full grid takes.

    python benchmarks/domains.py MNIST.zip WEIGHTS [--backbone NAME] [--rows N] [--heads A,B] [--folder DIR] [--epochs N]

MNIST.zip is an archive in folders of splits and classes. N of its images are dealt out by a fixed seed, class by class, to
three styles, so that no digit is in two of them: as it is; inverted; blurred, with noise. A manifest with a column `domain`
names them. They are extracted once, then 3 targets x 3 trials x 5 settings run from the store under every rule, in honest
and in reference roles. The limit is 10 minutes for a grid on two cores.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from featurecache.seeding import generator
from pipelines.run_protocol import RunProtocolConfig, run
from save_features import SaveFeaturesConfig
from save_features import run as extract

RULES = "training-domain,leave-one-out,oracle"
MINUTES = 10.0
NOISE, BLUR = 40.0, 1.0


def as_is(image: Image.Image, name: str) -> Image.Image:
    """Return the image."""
    return image


def inverted(image: Image.Image, name: str) -> Image.Image:
    """Return dark digits on white."""
    return ImageOps.invert(image)


def noisy(image: Image.Image, name: str) -> Image.Image:
    """Return the image blurred, with noise that is a fixed function of its name."""
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(BLUR)), dtype=np.float64)
    noise = generator("domains: noise", name).normal(0, NOISE, blurred.shape)
    return Image.fromarray(np.clip(blurred + noise, 0, 255).astype(np.uint8))


STYLES: Mapping[str, Callable[[Image.Image, str], Image.Image]] = {
    "as-is": as_is, "inverted": inverted, "noisy": noisy,
}  # fmt: skip


def write_styles(archive: Path, folder: Path, rows: int) -> Path:
    """Write the images and their manifest, unless they are there; return the manifest."""
    manifest = folder / "styles.csv"
    if manifest.exists():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    with zipfile.ZipFile(archive) as images:
        for number, name in enumerate(_dealt([n for n in images.namelist() if n.endswith(".png")], rows)):
            split, label, file = name.split("/")[-3:]
            style = list(STYLES)[number % len(STYLES)]
            image = Image.open(io.BytesIO(images.read(name))).convert("L")
            path = Path(style) / f"{label}-{split}-{file}"
            (folder / style).mkdir(exist_ok=True)
            STYLES[style](image, name).save(folder / path)
            lines.append((str(path), label, style, "train"))
    with manifest.open("w", newline="") as file_of_lines:
        csv.writer(file_of_lines).writerows([("path", "label", "domain", "split"), *lines])
    return manifest


def _dealt(names: list[str], rows: int) -> list[str]:
    """Return so many names in drawn order, class after class, so that styles in turn hold the classes alike."""
    names = sorted(names)
    picked = [names[i] for i in generator("domains: which").permutation(len(names))[:rows]]
    return sorted(picked, key=lambda name: name.split("/")[-2])


def main() -> None:
    """Make the store, run both grids, print the tables and the minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--backbone", default="timm:vit_tiny_patch16_224")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--heads", default="linear")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=Path("domains"))
    asked = parser.parse_args()
    manifest = write_styles(asked.archive, asked.folder / "images", asked.rows)
    store = asked.folder / "styles.zarr"
    extract(SaveFeaturesConfig(
        data=str(manifest), backbone=asked.backbone, weights=asked.weights, out=store, tokens="cls+mean",
    ))  # fmt: skip
    for roles in ("honest", "reference"):
        started = time.perf_counter()
        report = run(RunProtocolConfig(
            protocol=f"leave-one-domain-out?select={RULES}&roles={roles}", stores=(store,), heads=(asked.heads,),
            out=asked.folder / roles, epochs=asked.epochs,
        ))  # fmt: skip
        _print(report.record, roles, (time.perf_counter() - started) / 60, report.repeated)


def _print(record: Mapping[str, list[dict[str, object]]], roles: str, minutes: float, repeated: bool) -> None:
    print(f"| {roles}: rule | target | head | {record['metric']} | deviation |\n|---|---|---|---|---|")
    for line in record["results"]:
        print(
            f"| {line['select']} | {line['target']} | {line['head']} | {line['mean']:.4f} | {line['deviation']:.4f} |"
        )
    if not repeated:
        print(f"{roles}: {minutes:.1f} minutes, {minutes / MINUTES:.2f} of the limit\n")


if __name__ == "__main__":
    main()
