"""What do the promises of a store cost, and does it feed training as if it were RAM?

    python benchmarks/store.py [--only writes reads epochs cold] [--rows 50000 --width 768] [--layers 12 --layer-rows 20000
        --layer-width 192] [--folder DISK] [--out FILE]

- **writes**: rows written by the project's writer, committed every `--commit-mb`, and sealed, against the same bytes in as
  many plain files that are synced once, at the end. Held against: at most 1.4 times the time.
- **reads**: 256 random rows at a time, as NumPy users read them (`store.read`), against a raw memory map of one file with
  the same bytes. Held against: at least 0.5 of its speed.
- **epochs**: one epoch of the project's own loop over the training rows of a Zarr store (`CachedSource`), against the same
  loop over tensors in RAM from which the same batches are taken by `index_select`: the same bytes, dtype and order of rows.
  Held against: at least 0.95 of its speed, for a linear head on one array and for an LFA head on twelve, shuffled;
  sequential and block-shuffled for information, and so is the first epoch after the store is opened, which also lays its
  pages into the process. Beside the seconds stands the CPU time, which other programs disturb less; and the speed against
  RAM in pages of 4 KiB, for the kernel gives arrays in RAM pages of 2 MiB and mapped files small ones: random rows then
  miss the processor's table of pages more often, which no reader of files can mend. A gather of 256 rows of 1.5 kB takes
  340 instead of 260 microseconds so, from a file and from RAM alike, and our own part of a batch is some 10.
- **cold**: one pass over every row of a store of which the kernel holds nothing in memory, sequential and block-shuffled, as
  the passes over a store larger than RAM are, against reading its files one after the other and nothing else. Held against:
  at least 0.8 of that bandwidth. `--folder` says whose disk; a file system in memory has none.

The stores are made by the project's own writer, of random features; but for the last part everything is in the page cache,
as after an extraction. Two things that are compared take turns.
"""

from __future__ import annotations

import argparse
import copy
import mmap
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _cold import measure_cold
from _reporting import Ratio, conclude, in_turns, middle, seconds
from _stores import random_store
from _writing import measure_writes

from featurecache.casting import as_tensor
from featurecache.features import ArraySpec, FeatureBatch, Header, Layer, layer_array
from featurecache.sources import FeatureSource, Order
from featurecache.sources.cached import CachedSource, ordered, split_rows
from featurecache.stores import FeatureStore, open_store
from heads import HEADS, HeadSpec
from pipelines.objectives.cross_entropy import build as cross_entropy
from pipelines.training.fitting import fit
from pipelines.training.recipe import Recipe
from pipelines.training.stack import Member

EPOCH_LIMIT, READ_LIMIT = 0.95, 0.5
CLASSES, BATCH, READS = 100, 256, 400


@dataclass(frozen=True, slots=True)
class Walk:
    """Sequential batches of tensors in RAM."""

    source: InMemory
    batch_size: int

    def __iter__(self) -> Iterator[FeatureBatch]:
        return self.source.batches(self.batch_size)


class InMemory:
    """What training from RAM looks like at its leanest: batches by `index_select`, no sample ids."""

    def __init__(self, store: FeatureStore, arrays: Sequence[str], rows: npt.NDArray[np.int64]) -> None:
        self.arrays = {
            name: as_tensor(store.read(name, rows).copy(), store.header.array(name).dtype) for name in arrays
        }
        self.targets = torch.from_numpy(np.asarray(store.table().target)[rows])

    def in_small_pages(self) -> InMemory:
        """Return the same, in memory that the kernel maps as it maps files."""
        other = copy.copy(self)
        other.arrays = {name: _in_small_pages(values) for name, values in self.arrays.items()}
        return other

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self, batch_size: int, *, order: Order = "sequential", seed: int = 0, start: int = 0
    ) -> Iterator[FeatureBatch]:
        """Yield every row once."""
        rows = ordered(np.arange(len(self)), order, seed)
        places = torch.from_numpy(rows)
        for first in range(start, len(self), batch_size):
            picked = places[first : first + batch_size]
            arrays = {name: values.index_select(0, picked).float() for name, values in self.arrays.items()}
            yield FeatureBatch(rows[first : first + batch_size], (), self.targets.index_select(0, picked), arrays)

    def walk(self, batch_size: int) -> Walk:
        """Return sequential batches that can be walked more than once."""
        return Walk(self, batch_size)


def _in_small_pages(values: torch.Tensor) -> torch.Tensor:
    memory = mmap.mmap(-1, values.nbytes)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=values.dtype).view(values.shape).copy_(values)


def make_store(path: Path, rows: int, arrays: tuple[ArraySpec, ...], width: int) -> FeatureStore:
    """Write a finished store of random features."""
    layers = tuple(Layer(index, width, "norm") for index in range(len(arrays)))
    header = Header(
        backbone={"name": "random"}, dataset={"fingerprint": "random"}, rows=rows, views=1, task="classification",
        class_names=tuple(map(str, range(CLASSES))), layers=layers, tokens=("cls",), arrays=arrays,
    )  # fmt: skip
    return random_store(path, header)


def epoch(head: str, spec: HeadSpec, source: FeatureSource, epochs: int, order: Order = "shuffled") -> float:
    """Seconds of one epoch of a fresh head, as `train-head` runs it, without validation."""
    torch.manual_seed(0)
    room = HEADS.load(head)
    options = {"start": "published"} if head == "lfa" else {}  # the closed form of the start is no epoch
    member = Member(room.build(spec, **options), room.LEARNING_RATE, 0.01)
    recipe = Recipe(epochs=epochs, batch_size=BATCH, order=order)
    return (
        seconds(lambda: fit([member], source, None, cross_entropy("classification"), recipe, "classification")) / epochs
    )


def measure_epochs(head: str, store: FeatureStore, turns: int, epochs: int) -> list[Ratio]:
    """Speed of an epoch from the store over that of an epoch from RAM."""
    arrays, rows = [spec.name for spec in store.header.arrays], split_rows(store, "train")
    in_memory = InMemory(store, arrays, rows)
    shapes = {name: store.header.array(name).tail for name in arrays}
    statistics = CachedSource(store, arrays, rows).statistics()
    spec = HeadSpec(shapes=shapes, num_classes=CLASSES, statistics=statistics)
    epoch(head, spec, in_memory, 1)  # memory of the optimiser, threads of torch
    cached = CachedSource(open_store(store.path), arrays, rows)
    first = epoch(head, spec, cached, 1)
    feeds = {"RAM": in_memory, "RAM in small pages": in_memory.in_small_pages(), "store": cached}
    spent: dict[str, list[float]] = {name: [] for name in feeds}

    def timed(name: str) -> float:
        before = time.process_time()
        found = epoch(head, spec, feeds[name], epochs)
        spent[name].append((time.process_time() - before) / epochs)
        return found

    found = in_turns([lambda n=name: timed(n) for name in feeds], turns)
    ratios, ram = [a / b for a, _, b in found], middle([turn[0] for turn in found])
    figures = {f"{name} s": middle([turn[i] for turn in found]) for i, name in enumerate(feeds)}
    figures |= {f"{name} CPU s": middle(each) for name, each in spent.items()}
    what, against = f"epoch of {head}, {len(rows)} rows x {len(arrays)} arrays", "the same loop, tensors in RAM"
    shares = [a / b for a, b in zip(spent["RAM"], spent["store"], strict=True)]
    paged = [b / c for _, b, c in found]
    others = [
        Ratio(what=f"{what}, CPU time", against=against, value=middle(shares), of_each_turn=shares),
        Ratio(what=what, against="RAM in small pages", value=middle(paged), of_each_turn=paged),
    ]
    for order in ("sequential", "blocks"):
        acts = [lambda o=order: epoch(head, spec, in_memory, 1, o), lambda o=order: epoch(head, spec, cached, 1, o)]
        speeds = [a / b for a, b in in_turns(acts, turns)]
        others.append(Ratio(what=f"{order} {what}", against=against, value=middle(speeds), of_each_turn=speeds))
    return [
        Ratio(
            what=what, against=against, value=middle(ratios), limit=EPOCH_LIMIT, of_each_turn=ratios, figures=figures
        ),
        Ratio(what=f"first {what}", against=against, value=ram / first, figures={"store s": first}),
        *others,
    ]


def measure_reads(store: FeatureStore, folder: Path, turns: int) -> Ratio:
    """Speed of random reads from the store over that from a raw memory map."""
    spec = store.header.arrays[0]
    shape, file = (store.header.rows, *spec.tail), folder / "raw.bin"
    store.read(spec.name, slice(0, store.header.rows)).tofile(file)
    raw = np.memmap(file, spec.storage_dtype, "r", shape=shape)
    rng = np.random.default_rng(1)
    draws = [rng.integers(0, store.header.rows, BATCH) for _ in range(READS)]

    def from_store() -> None:
        for rows in draws:
            store.read(spec.name, rows)

    def from_map() -> None:
        for rows in draws:
            np.asarray(raw[rows])

    from_store(), from_map()  # pages into the process
    found = in_turns([lambda: seconds(from_map), lambda: seconds(from_store)], turns)
    ratios, size = [a / b for a, b in found], READS * BATCH * spec.row_bytes / 1e6
    return Ratio(
        what=f"{BATCH} random rows x {READS}", against="raw np.memmap", value=middle(ratios), limit=READ_LIMIT,
        of_each_turn=ratios,
        figures={"memmap MB/s": size / middle([a for a, _ in found]), "store MB/s": size / middle([b for _, b in found])},
    )  # fmt: skip


def main() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "folder")}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, ratios, only = Path(name), [], options.only
        if "writes" in only:
            ratios.append(measure_writes(
                folder, options.turns, rows=options.layer_rows, layers=options.layers, width=options.width,
                commit_bytes=int(options.commit_mb * 1e6),
            ))  # fmt: skip
        one = (ArraySpec("embedding", (options.width,), options.dtype),)
        if "epochs" in only or "reads" in only:
            store = make_store(folder / "linear.zarr", options.rows, one, options.width)
        if "reads" in only and options.dtype != "bfloat16":
            ratios.append(measure_reads(store, folder, options.turns))
        if "epochs" in only:
            ratios += measure_epochs("linear", store, options.turns, options.epochs)
            ratios += measure_epochs("lfa", lfa_store(folder, options), options.turns, options.epochs)
        if "cold" in only:
            large = make_store(folder / "cold.zarr", options.cold_rows, one, options.width)
            large.close()
            ratios += measure_cold(large.path, ["embedding"], options.turns, BATCH)
        return conclude("A Zarr store: its writes, its reads, and training from it", ratios, settings, options.out)


def lfa_store(folder: Path, options: argparse.Namespace) -> FeatureStore:
    specs = [ArraySpec(layer_array("cls", i), (options.layer_width,), options.dtype) for i in range(options.layers)]
    return make_store(folder / "lfa.zarr", options.layer_rows, tuple(specs), options.layer_width)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = ("writes", "reads", "epochs", "cold")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts to measure; default: all")
    parser.add_argument("--commit-mb", type=float, default=50, help="size of a commit")
    parser.add_argument("--cold-rows", type=int, default=500_000, help="rows of the store that is read cold")
    parser.add_argument("--rows", type=int, default=50_000, help="rows of the linear head")
    parser.add_argument("--width", type=int, default=768, help="D of its array")
    parser.add_argument("--layers", type=int, default=12, help="arrays of the LFA head")
    parser.add_argument("--layer-rows", type=int, default=20_000, help="its rows")
    parser.add_argument("--layer-width", type=int, default=192, help="D of its arrays")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="of the stores")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of one measurement")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each, in turns; the middle ratio counts")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch; several suffer most from other programs"
    )
    parser.add_argument("--folder", type=Path, help="where the stores are made, for a while; default: the system's")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
