"""What the features of the built-in `demo` backbone are worth: digits, 5 labelled images a class, 10 draws.

    python benchmarks/demo_backbone.py

Every draw trains on 50 images and tests on the other 1,747; the rows are the same for all features. Compared are the demo
backbone, the same network with random weights, and the raw pixels, each through the heads of the project and the nearest
neighbour. Limits: the best head on the demo features beats the best on random weights by 10 points, and the best on
pixels with intervals apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from featurecache.features import parse_layer_array
from featurecache.sources.cached import CachedSource
from featurecache.stores import FeatureStore, open_store
from heads import HEADS, ClosedForm, HeadSpec
from heads._checkpoint import build_head
from pipelines._evaluation import evaluate
from pipelines.objectives.cross_entropy import build as cross_entropy
from pipelines.training.fitting import fit
from pipelines.training.recipe import Recipe
from pipelines.training.stack import Member
from save_features import SaveFeaturesConfig
from save_features import run as extract

FEATURES = {
    "demo": {"backbone": "demo"},
    "random weights": {"backbone": "demo", "weights": "random:0"},
    "pixels": {"backbone": "python:demo_backbone:pixels"},
}
NEAREST = "1-nn"
"""scikit-learn's nearest neighbour: the strongest simple rule on raw pixels, so it is the one to beat."""

MARGIN = 10.0
"""Points by which trained weights must beat random ones."""


class Pixels(nn.Module):
    """(B, 3, 8, 8) grey images as they are -> (B, 64)."""

    pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0}  # noqa: RUF012

    def forward(self, images: Tensor) -> Tensor:
        """Return the first channel, flat."""
        return images[:, 0].flatten(1)


def pixels() -> nn.Module:
    """Return the backbone that does nothing."""
    return Pixels()


def draws(targets: npt.NDArray[np.int64], shots: int, count: int) -> list[npt.NDArray[np.int64]]:
    """Return `count` draws of `shots` rows a class, ascending."""
    found = []
    for seed in range(count):
        generator = np.random.default_rng(seed)
        classes = [np.flatnonzero(targets == c) for c in np.unique(targets)]
        found.append(np.sort(np.concatenate([generator.choice(rows, shots, replace=False) for rows in classes])))
    return found


def accuracy(store: FeatureStore, head: str, arrays: tuple[str, ...], rows: npt.NDArray[np.int64]) -> float:
    """Return the test accuracy in per cent of a head trained on `rows` and tested on all others."""
    header, others = store.header, np.setdiff1d(np.arange(store.header.rows), rows)
    if head == NEAREST:
        targets, (values,) = np.asarray(store.table().target), [store.read(name, slice(None)) for name in arrays]
        return 100 * float(
            KNeighborsClassifier(1).fit(values[rows], targets[rows]).score(values[others], targets[others])
        )
    room = HEADS.load(head)
    train, test = CachedSource(store, arrays, rows), CachedSource(store, arrays, others)
    shapes = {name: header.array(name).tail for name in arrays}
    spec = HeadSpec(shapes=shapes, num_classes=len(header.class_names), statistics=train.statistics())
    torch.manual_seed(0)
    built = build_head(head, spec, {})
    if isinstance(built, ClosedForm):
        built.solve(train.walk(4096))
    member, objective = Member(built, room.LEARNING_RATE, 0.01), cross_entropy(header.task)
    fit([member], train, None, objective, Recipe(epochs=200, batch_size=50), header.task)
    return 100 * float(evaluate(built, test, header.task, "cpu")[0]["top1"]["value"])


def choices(store: FeatureStore) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (head, what it reads, arrays) to be tried on a store."""
    layers = tuple(spec.name for spec in store.header.arrays if parse_layer_array(spec.name))
    cls = tuple(name for name in layers if "/cls/" in name)
    read = [("embedding", ("embedding",))]
    read += [("all layers, cls", cls), ("all layers, cls and mean", layers)] if layers else []
    singles = [(head, name, arrays) for name, arrays in read for head in ("linear", "ridge")]
    return [(NEAREST, *read[0]), *singles, *([("lfa", "all layers, cls", cls)] if cls else [])]


def measured(store: FeatureStore, shots: int, count: int) -> list[dict[str, Any]]:
    """Return mean accuracy and 95 % t interval of every head over the draws."""
    chosen = draws(np.asarray(store.table().target), shots, count)
    found = []
    for head, name, arrays in choices(store):
        values = [accuracy(store, head, arrays, rows) for rows in chosen]
        half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
        found.append({"head": head, "reads": name, "mean": float(np.mean(values)), "half": half})
    return found


def main() -> None:
    """Measure, print one line a head, write JSON, and leave with 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("demo_backbone.json"))
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in FEATURES.items():
            out = Path(folder) / f"{name}.zarr"
            tokens = "auto" if name == "pixels" else "cls+mean"
            layers = "none" if name == "pixels" else "all"
            extract(SaveFeaturesConfig(data="digits", out=out, layers=layers, tokens=tokens, quiet=True, **settings))  # type: ignore[arg-type]
            found[name] = measured(open_store(out), options.shots, options.draws)
            for line in found[name]:
                print(
                    f"{name:15} {line['head']:7} {line['reads']:25} {line['mean']:6.2f} +- {line['half']:.2f}",
                    flush=True,
                )
    best = {name: max(lines, key=lambda line: line["mean"]) for name, lines in found.items()}
    beats_random = best["demo"]["mean"] >= best["random weights"]["mean"] + MARGIN
    beats_pixels = best["demo"]["mean"] - best["demo"]["half"] > best["pixels"]["mean"] + best["pixels"]["half"]
    options.out.write_text(json.dumps({"features": found, "best": best, "ok": beats_random and beats_pixels}, indent=2))
    print(
        f"beats random weights by {MARGIN:.0f} points: {beats_random}; beats pixels with intervals apart: {beats_pixels}"
    )
    sys.exit(0 if beats_random and beats_pixels else 1)


if __name__ == "__main__":
    main()
