"""Does memory stay the same, whatever the number of rows?

    python benchmarks/memory.py [--rows 200000] [--images 20000] [--width 64] [--only table scores training extraction]

Each act runs in a fresh process over N rows and over 10 N. What counts is the most memory that the process ever
holds, less the bytes of the row table (ids, targets, splits) itself, which are what rows must cost. Held against: at most
1.1 times over ten times the rows. What the act adds to an imported library is told too, and what a row more costs.

- **table**: what opening a store and reading its row table takes at its peak, in bytes of the table itself (for information).
- **scores**: LogME of the embedding and of one layer.
- **training**: `train-head` with a linear head, one epoch; evaluation, intervals and predictions are of the val and test rows.
  What a row costs beyond the table are its number in its split and in the order of an epoch, 4 bytes each; a row of
  val and test also its logits as float32 and some 40 bytes in which the metrics and their draws are counted.
- **extraction**: a backbone that is nearly free, from pictures that are made when they are read; the store is made, written,
  sealed and scored. A row takes some 130 microseconds of one core, hence the smaller default: two million, with its turns, take
  a quarter of an hour.

`--rows` and `--images` are 10 N; 2,000,000 of both shows what the design asks for. Pages of mapped files are the kernel's, which takes them back at
need: not counted. The stores are of random features by the project's own writer.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _made_pictures import tiny_backbone, tiny_pictures
from _reporting import Ratio, conclude, in_turns, middle
from _stores import random_store

from featurecache.features import ArraySpec, Header, Layer
from featurecache.requests import header_of, requested
from featurecache.scoring import saved_scores
from featurecache.stores import create_store, open_store
from featurecache.views import Views
from heads import HEADS
from pipelines.train_head import TrainHeadConfig, planned, train_head
from save_features import SaveFeaturesConfig, save_features

MIB, MEMORY_LIMIT = 2**20, 1.1
CLASSES, SHARES = 7, ("train",) * 8 + ("val", "test")


def anonymous() -> int:
    """Bytes of this process that no file backs, and that the kernel cannot take back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def peak_added(act: Callable[[], object]) -> int:
    """Bytes that an act adds at its peak to what the process holds before."""
    before, seen, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        act()
    finally:
        done.set()
        watcher.join()
    return max(*seen, anonymous()) - before


def measured(act: Callable[[], object], table: Callable[[], object], *, held: bool = False) -> tuple[int, int, int]:
    """Bytes that an act adds at its peak with the row table, those of the table, and the peak of the whole process.

    `held`: the table is in memory before the act begins, so that the act does not add it.
    """
    before = anonymous()
    added, size = peak_added(act), table_bytes(table())
    return added + size if held else added, size, before + added


def table_bytes(table: object) -> int:
    """Bytes of the columns of a row table, texts as NumPy keeps them."""
    found = 0
    for name in ("sample_id", "split", "domain", "group", "target"):
        column = np.asarray(getattr(table, name))
        long = (
            sum(len(text.encode()) + 1 for text in column.tolist() if len(text) > 15)
            if column.dtype.kind in "TU"
            else 0
        )
        found += column.nbytes + long
    return found


def synthetic(path: Path, rows: int, width: int) -> None:
    """Write a finished store of random features of one backbone with one layer."""
    arrays = tuple(ArraySpec(name, (width,), "float16") for name in ("embedding", "layers/cls/00"))
    header = Header(
        backbone={"name": "random"}, dataset={"name": "random", "fingerprint": str(rows)}, rows=rows, views=1,
        task="classification", class_names=tuple(map(str, range(CLASSES))), layers=(Layer(0, width, "norm"),),
        tokens=("cls",), arrays=arrays,
    )  # fmt: skip
    random_store(path, header, SHARES).close()


def of_table(path: Path, _: Path) -> tuple[int, int, int]:
    store = open_store(path)
    return measured(store.table, store.table)


def of_scores(path: Path, _: Path) -> tuple[int, int, int]:
    torch.set_num_threads(1)
    store = open_store(path)
    shutil.rmtree(path / "scores", ignore_errors=True)
    store.table()  # scoring reads its columns a piece at a time; it is counted with the table in memory all the same
    return measured(lambda: saved_scores(store), store.table, held=True)


def of_training(path: Path, folder: Path) -> tuple[int, int, int]:
    torch.set_num_threads(1)
    HEADS.load("linear")
    config = TrainHeadConfig(store=path, out=folder / "run", epochs=1, lr=0.01, quiet=True)
    shutil.rmtree(config.out, ignore_errors=True)
    config.out.mkdir()
    store = open_store(path)
    return measured(lambda: train_head(store, planned(store, config), config), store.table)


def of_extraction(path: Path, folder: Path) -> tuple[int, int, int]:
    torch.set_num_threads(1)
    rows, out = int(path.stem.rpartition("-")[2]), folder / "extracted.zarr"
    dataset, backbone = tiny_pictures(rows), tiny_backbone()
    shutil.rmtree(out, ignore_errors=True)
    config = SaveFeaturesConfig(data="made", backbone="made", out=out, batch_size=64, decode_threads=1, quiet=True)
    request = requested(backbone, "all", "auto")
    header = header_of(backbone, dataset, request, dtype="float16", batch_size=64, views=Views(), decoder="pillow")

    def act() -> None:
        store = create_store(out, header, dataset.table, chunk_multiple=64)
        save_features(backbone, dataset, store, config)
        store.close()

    return measured(act, lambda: dataset.table, held=True)


ACTS = {"table": of_table, "scores": of_scores, "training": of_training, "extraction": of_extraction}


def measure(name: str, many: int, options: argparse.Namespace, folder: Path) -> Ratio:
    """Peak over `many` rows beyond their row table, over that of a tenth of them."""
    counts = (many // 10, many)
    stores = [folder / f"rows-{count}.zarr" for count in counts]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for store, count in zip(stores, counts, strict=True):
            if name != "extraction" and not store.exists():
                pool.apply(synthetic, (store, count, options.width))
        acts = [lambda s=store: pool.apply(ACTS[name], (s, folder)) for store in stores]
        found = in_turns(acts, options.turns)
    figures = {f"MiB at {count}": middle([turn[i][0] / MIB for turn in found]) for i, count in enumerate(counts)}
    figures |= {f"table MiB at {count}": found[0][i][1] / MIB for i, count in enumerate(counts)}
    if name == "table":
        ratios = [turn[1][0] / turn[1][1] for turn in found]
        return Ratio(what=f"reading the table of {many} rows", against="bytes of the table", value=middle(ratios),
                     of_each_turn=ratios, figures=figures)  # fmt: skip
    added = [max(large[0] - large[1], MIB) / max(small[0] - small[1], MIB) for small, large in found]
    ratios = [(large[2] - large[1]) / (small[2] - small[1]) for small, large in found]
    figures |= {
        f"whole process MiB at {count}": middle([t[i][2] / MIB for t in found]) for i, count in enumerate(counts)
    }
    figures["bytes a row beyond the table"] = middle(
        [(large[0] - large[1] - small[0] + small[1]) / (many - many // 10) for small, large in found]
    )
    figures["ratio of what the act itself adds"] = middle(added)
    return Ratio(
        what=f"peak of {name}, {many} rows, beyond the table", against=f"{many // 10} rows", value=middle(ratios),
        limit=MEMORY_LIMIT, bound="at most", of_each_turn=ratios, figures=figures,
    )  # fmt: skip


def main() -> int:
    options = parse()
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "folder")}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        ratios = [
            measure(act, options.images if act == "extraction" else options.rows, options, Path(name))
            for act in options.only
        ]
        return conclude("Memory of N rows and of ten times as many", ratios, settings, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000, help="10 N of the table, scores and training")
    parser.add_argument("--images", type=int, default=60_000, help="10 N of the extraction")
    parser.add_argument("--width", type=int, default=64, help="D of the features")
    parser.add_argument("--only", nargs="+", choices=tuple(ACTS), default=tuple(ACTS), help="acts; default: all")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each, in turns; the middle ratio counts")
    parser.add_argument("--folder", type=Path, help="where the stores are made, for a while; default: the system's")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
