"""What does a sweep cost over its heads one by one, and over the leanest loop that trains as many?

    python benchmarks/sweep.py [--only linear lfa] [--device cpu] [--rows 20000]

- **linear**: 100 linear heads, D = 192, C = 10, each with its own rate and decay, from a Zarr store: against 100 separate
  trainings (some of them are timed, each reads the store itself), and against a bare loop of batched matrix products over
  tensors in RAM (gather, `baddbmm`, cross-entropy, AdamW of torch). On a GPU: its time over that of one head.
- **lfa**: the same of 32 LFA heads over 12 layers; the bare loop is the head's own formula, batched by hand.

Every measurement is of a few epochs without validation, after one that is not counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _reporting import Ratio, conclude, in_turns, middle, seconds
from _stores import random_store

from featurecache.casting import as_tensor
from featurecache.features import ArraySpec, Header, Layer, layer_array
from featurecache.sources.cached import CachedSource, split_rows
from featurecache.sources.staged import staged
from featurecache.stores import FeatureStore
from heads import HEADS, HeadSpec
from pipelines.objectives.cross_entropy import build as cross_entropy
from pipelines.training.fitting import fit
from pipelines.training.recipe import Recipe
from pipelines.training.stack import Member

CLASSES, WIDTH, BATCH, LAYERS, ATTENTION = 10, 192, 256, 12, 64
SEPARATE_LIMIT, BARE_LIMIT, GPU_LIMIT = 5.0, 0.8, 3.0
COUNTS = {"linear": 100, "lfa": 32}
ALONE = 5
"""Separate trainings that are timed; they stand for all."""


def made(folder: Path, rows: int) -> FeatureStore:
    """Write a finished store of random features."""
    header = Header(
        backbone={"name": "random"}, dataset={"fingerprint": "random"}, rows=rows, views=1, task="classification",
        class_names=tuple(map(str, range(CLASSES))), layers=tuple(Layer(i, WIDTH, "norm") for i in range(LAYERS)),
        tokens=("cls",), arrays=tuple(ArraySpec(layer_array("cls", i), (WIDTH,), "float16") for i in range(LAYERS)),
    )  # fmt: skip
    return random_store(folder / "x.zarr", header)


class Contest:
    """One kind of head in its three forms."""

    def __init__(self, head: str, store: FeatureStore, options: argparse.Namespace) -> None:
        self.head, self.epochs, self.device = head, options.epochs, options.device
        self.arrays = [spec.name for spec in store.header.arrays][slice(None) if head == "lfa" else slice(-1, None)]
        rows = split_rows(store, "train")
        self.source: Any = staged({"x": CachedSource(store, self.arrays, rows)}, self.device)["x"]
        self.in_ram = [as_tensor(store.read(name, rows).copy(), "float16").to(self.device) for name in self.arrays]
        statistics = CachedSource(store, self.arrays, rows).statistics()
        self.statistics = [tuple(value.to(self.device) for value in statistics[name]) for name in self.arrays]
        self.targets = torch.arange(len(rows), device=self.device) % CLASSES
        shapes = dict.fromkeys(self.arrays, (WIDTH,))
        self.spec = HeadSpec(shapes=shapes, num_classes=CLASSES, statistics=statistics)
        self.settings = {"start": "published", "width": ATTENTION} if head == "lfa" else {}

    def members(self, count: int) -> list[Member]:
        torch.manual_seed(0)
        room = HEADS.load(self.head)
        return [Member(room.build(self.spec, **self.settings), 1e-3 * (1 + m), 0.01 * m) for m in range(count)]

    def ours(self, count: int) -> float:
        """Seconds of a training of that many heads together."""
        members = self.members(count)
        recipe = Recipe(epochs=self.epochs, batch_size=BATCH, device=self.device)
        objective = cross_entropy("classification").to(self.device)
        return self._timed(lambda: fit(members, self.source, None, objective, recipe, "classification"))

    def bare(self, count: int) -> float:
        """Seconds of the leanest loop that trains as many heads, over tensors in RAM."""
        values = self._values(count)
        optimizer = torch.optim.AdamW(values, lr=1e-3)
        logits = self._lfa if self.head == "lfa" else self._linear

        def train() -> None:
            for _ in range(self.epochs):
                order = torch.randperm(len(self.targets), device=self.device)
                for start in range(0, len(order), BATCH):
                    picked = order[start : start + BATCH]
                    x = [
                        (values.index_select(0, picked).float() - mean) / deviation
                        for values, (mean, deviation) in zip(self.in_ram, self.statistics, strict=True)
                    ]
                    found = logits(x, values)
                    targets = self.targets[picked].expand(count, -1).flatten()
                    loss = F.cross_entropy(found.flatten(0, 1), targets, reduction="sum") / len(picked)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()

        return self._timed(train)

    def _values(self, count: int) -> list[Tensor]:
        def drawn(*shape: int) -> Tensor:
            return (torch.randn(count, *shape, device=self.device) / WIDTH**0.5).requires_grad_()

        if self.head == "linear":
            return [drawn(CLASSES, WIDTH), drawn(1, CLASSES)]
        return [
            drawn(ATTENTION, WIDTH), *(drawn(ATTENTION, WIDTH) for _ in range(LAYERS)),
            *(drawn(CLASSES, WIDTH) for _ in range(LAYERS)), drawn(1, CLASSES),
        ]  # fmt: skip

    def _linear(self, x: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        weight, bias = values
        return torch.baddbmm(bias, x[0].expand(len(weight), -1, -1), weight.mT)

    def _lfa(self, x: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        query, keys, maps, bias = values[0], values[1 : 1 + LAYERS], values[1 + LAYERS : -1], values[-1]
        q = x[-1] @ query.mT
        scores = torch.stack([(q * (one @ key.mT)).sum(-1) for one, key in zip(x, keys, strict=True)], -1)
        weights = (scores / ATTENTION**0.5).softmax(-1)
        said = torch.stack([one @ value.mT for one, value in zip(x, maps, strict=True)], -2)
        return (weights[..., None] * said).sum(-2) + bias

    def _timed(self, act: Callable[[], None]) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return seconds(lambda: (act(), torch.cuda.synchronize() if self.device != "cpu" else None))


def measure(head: str, store: FeatureStore, options: argparse.Namespace) -> list[Ratio]:
    """Time a sweep of one kind of head in its three forms, in turns."""
    contest, count = Contest(head, store, options), COUNTS[head]
    contest.ours(2), contest.bare(2)
    acts = [
        lambda: contest.ours(count),
        lambda: sum(contest.ours(1) for _ in range(ALONE)) / ALONE,
        lambda: contest.bare(count),
    ]
    found = in_turns(acts, options.turns)
    together, alone, bare = (middle([turn[k] for turn in found]) for k in range(3))
    figures = {"together s": together, "one alone s": alone, "bare s": bare}
    if options.device != "cpu":
        times = [a / b for a, b, _ in found]
        return [Ratio(what=f"{count} {head} heads", against="one head", value=middle(times), limit=GPU_LIMIT,
                      bound="at most", of_each_turn=times, figures=figures)]  # fmt: skip
    faster, share = [count * b / a for a, b, _ in found], [c / a for a, _, c in found]
    what = f"{count} {head} heads from one read"
    return [
        Ratio(what=what, against=f"{count} separate trainings", value=middle(faster), limit=SEPARATE_LIMIT,
              of_each_turn=faster, figures=figures),
        Ratio(what=what, against="bare batched products in RAM", value=middle(share), limit=BARE_LIMIT, of_each_turn=share),
    ]  # fmt: skip


def main() -> int:
    options = parse()
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "folder")}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        store = made(Path(name), options.rows)
        ratios = [ratio for head in options.only for ratio in measure(head, store, options)]
        return conclude("Sweeps of heads from one read", ratios, settings, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=tuple(COUNTS), default=tuple(COUNTS), help="heads; default: all")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the store")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of one measurement")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each, in turns; the middle ratio counts")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU")
    parser.add_argument("--folder", type=Path, help="where the store is made, for a while; default: the system's")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
