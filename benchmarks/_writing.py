"""Writing a store with its commits, against writing the same bytes into plain files that are synced at the end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from _reporting import Ratio, in_turns, middle, seconds

from featurecache.datasets import RowTable
from featurecache.features import ArraySpec, Header, Layer, layer_array
from featurecache.files import sync_folder
from featurecache.stores import create_store

WRITE_LIMIT = 1.4
BATCH = 256


def written_header(rows: int, layers: int, width: int) -> Header:
    """Return the header of a store of `layers` arrays in float16."""
    return Header(
        backbone={"name": "random"}, dataset={"fingerprint": "random"}, rows=rows, views=1, task="classification",
        class_names=("a", "b"), layers=tuple(Layer(index, width, "norm") for index in range(layers)), tokens=("cls",),
        arrays=tuple(ArraySpec(layer_array("cls", index), (width,), "float16") for index in range(layers)),
    )  # fmt: skip


def committed(path: Path, header: Header, values: np.ndarray, commit_bytes: int) -> float:
    """Seconds of writing and committing every row into a new store, and of sealing it."""
    nothing = [""] * header.rows
    table = RowTable(
        sample_id=[f"{row:08d}" for row in range(header.rows)], target=np.arange(header.rows) % 2,
        split=["train"] * header.rows, domain=nothing, group=nothing,
    )  # fmt: skip
    shutil.rmtree(path, ignore_errors=True)
    store = create_store(path, header, table, chunk_multiple=64)
    row_bytes = sum(spec.row_bytes for spec in header.arrays)

    def run() -> None:
        for start in range(0, header.rows, BATCH):
            rows = range(start, min(start + BATCH, header.rows))
            store.write(rows, {spec.name: values[: len(rows)] for spec in header.arrays}, {})
            if store.uncommitted * row_bytes >= commit_bytes:
                store.commit()
        store.commit()
        store.finish()

    found = seconds(run)
    store.close()
    return found


def synced_at_end(folder: Path, header: Header, values: np.ndarray, file_rows: int) -> float:
    """Seconds of writing the same bytes into as many plain files, and of syncing all of them at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    for spec in header.arrays:
        (folder / spec.name).mkdir(parents=True)

    def run() -> None:
        files: dict[Path, int] = {}
        for start in range(0, header.rows, BATCH):
            part = values[: min(BATCH, header.rows - start)]
            for spec in header.arrays:
                path = folder / spec.name / str(start // file_rows)
                if path not in files:
                    files[path] = os.open(path, os.O_WRONLY | os.O_CREAT)
                os.write(files[path], part.tobytes())
        for descriptor in files.values():
            os.fsync(descriptor)
            os.close(descriptor)
        for place in (folder, *(folder / spec.name for spec in header.arrays)):
            sync_folder(place)

    return seconds(run)


def measure_writes(folder: Path, turns: int, *, rows: int, layers: int, width: int, commit_bytes: int) -> Ratio:
    """Time of committed writes over that of one sync at the end."""
    header = written_header(rows, layers, width)
    values = np.random.default_rng(0).standard_normal((BATCH, 1, width)).astype(np.float16)
    acts = [
        lambda: synced_at_end(folder / "plain", header, values, 4096),
        lambda: committed(folder / "written.zarr", header, values, commit_bytes),
    ]
    for act in acts:
        act()  # room on the disk, folders
    found = in_turns(acts, turns)
    ratios, size = [b / a for a, b in found], rows * layers * width * 2 / 1e6
    return Ratio(
        what=f"committed write, {size:.0f} MB, a commit every {commit_bytes / 1e6:.0f} MB", against="fsync at the end",
        value=middle(ratios), limit=WRITE_LIMIT, bound="at most", of_each_turn=ratios,
        figures={"plain MB/s": size / middle([a for a, _ in found]), "store MB/s": size / middle([b for _, b in found])},
    )  # fmt: skip
