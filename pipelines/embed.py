"""The verb `embed`: only the vectors, as one file that NumPy or any table reader opens; through a store, so that it can go on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from featurecache.checks import check
from featurecache.decoders import Decoder
from featurecache.features import as_numbers
from featurecache.files import write_atomic, write_whole
from featurecache.reports import Displayed, Table
from featurecache.stores import FeatureStore, explained, open_store, remove_store
from featurecache.threads import Computing, heeds_threads
from save_features import SaveFeaturesConfig
from save_features import run as extract

BLOCK = 4096
"""Rows that are written at a time."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(Computing):
    """Write the embedding of every image into one file: for those who want only vectors."""

    data: str
    """Data set: a folder, a .zip or .tar of one, or NAME[:ARGUMENT] such as digits."""
    backbone: str
    """Backbone: timm:NAME, demo, or python:package.module:function."""
    out: Path
    """File to write; a .npy gets a .csv beside it with the names of its rows."""
    format: Literal["npy", "parquet"] | None = None
    """npy: (N, D) float32; parquet: sample_id, label, split, embedding. Default: what the suffix of --out says."""
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
    """Arithmetic of the forward pass; auto is fp32 on a CPU and bf16 on a GPU that has it."""
    batch_size: int = 64
    """Images per forward pass."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable image does: stop the run, or be left out of the file."""
    decoder: Decoder = "pillow"
    """What decodes JPEG files: pillow, to the bit as timm does, or simplejpeg, faster and nearly the same; see the docs."""
    workers: int = 0
    """Processes that decode images ahead of the model, for a GPU that waits for them; 0: threads."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        known = {".npy": "npy", ".parquet": "parquet"}
        check(
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
            (self.workers >= 0, f"workers must not be negative, got {self.workers}"),
            (
                self.format is not None or self.out.suffix in known,
                f"{self.out} does not say its format: end it in .npy or .parquet, or give --format",
            ),
        )

    @property
    def kind(self) -> str:
        """The format, from `format` or the suffix."""
        return self.format or self.out.suffix[1:]


@dataclass(frozen=True, slots=True)
class EmbedReport(Displayed):
    """What was written."""

    out: Path
    shape: tuple[int, int]
    skipped: int

    def tables(self) -> list[Table]:
        """Return one line."""
        left_out = f"; {self.skipped} images could not be read and are left out" if self.skipped else ""
        return [Table("", (), (), (f"{self.out}: {self.shape[0]} vectors of {self.shape[1]}{left_out}",))]

    def json(self) -> dict[str, Any]:
        """Return the same as values."""
        return {"out": str(self.out), "rows": self.shape[0], "width": self.shape[1], "skipped": self.skipped}


@heeds_threads
def run(config: EmbedConfig) -> EmbedReport:
    """Extract the embedding into a store beside `out`, write the file from it, and remove the store."""
    place = config.out.with_name(f".{config.out.name}.zarr")
    with explained(f"write {config.out}"):
        config.out.parent.mkdir(parents=True, exist_ok=True)
    extracted = extract(
        SaveFeaturesConfig(
            data=config.data, backbone=config.backbone, out=place, layers="none", prompts="none", dtype="float32",
            weights=config.weights, backbone_option=config.backbone_option, transform=config.transform,
            image_size=config.image_size, device=config.device, precision=config.precision,
            batch_size=config.batch_size, on_error=config.on_error, quiet=config.quiet,
            decoder=config.decoder, workers=config.workers,
        )
    )  # fmt: skip
    store = open_store(place)
    try:
        rows = np.flatnonzero(store.readable())
        with explained(f"write {config.out}"):
            (_write_npy if config.kind == "npy" else _write_parquet)(config.out, store, rows)
        width = store.header.array("embedding").tail[0]
    finally:
        store.close()
    with explained(f"remove {place}"):
        remove_store(place)
    return EmbedReport(config.out, (len(rows), width), extracted.skipped)


def _blocks(
    store: FeatureStore, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
    spec = store.header.array("embedding")
    for start in range(0, len(rows), BLOCK):
        piece = rows[start : start + BLOCK]
        yield piece, as_numbers(store.read("embedding", piece), spec.dtype).astype(np.float32, copy=False)


def _names(store: FeatureStore, rows: npt.NDArray[np.int64]) -> tuple[list[str], list[str | None], list[str]]:
    """Return the sample ids, labels in words (None: unlabelled) and splits of some rows."""
    table, classes = store.table(), store.header.class_names
    targets = np.asarray(table.target)[rows]
    numbers = targets.tolist() if targets.ndim == 1 else [-1] * len(rows)
    labels = [classes[number] if number >= 0 else None for number in numbers]
    return np.asarray(table.sample_id)[rows].tolist(), labels, np.asarray(table.split)[rows].tolist()


def _write_npy(out: Path, store: FeatureStore, rows: npt.NDArray[np.int64]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample_id", "label", "split"])
    writer.writerows(zip(*_names(store, rows), strict=True))
    write_atomic(out.with_suffix(".csv"), text.getvalue().encode())
    shape = (len(rows), store.header.array("embedding").tail[0])
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}

    def write(path: Path) -> None:  # not through a map: a disk that is full would end the process without a word
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, about)
            for _, values in _blocks(store, rows):
                file.write(np.ascontiguousarray(values, "<f4").data)

    write_whole(out, write)


def _write_parquet(out: Path, store: FeatureStore, rows: npt.NDArray[np.int64]) -> None:
    width = store.header.array("embedding").tail[0]
    texts = [(name, pa.string()) for name in ("sample_id", "label", "split")]
    schema = pa.schema([*texts, ("embedding", pa.list_(pa.float32(), width))])

    def write(path: Path) -> None:
        with pa.parquet.ParquetWriter(path, schema) as file:
            for piece, values in _blocks(store, rows):
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
                columns = [pa.array(column, pa.string()) for column in _names(store, piece)]
                file.write_table(pa.table([*columns, vectors], schema=schema))

    write_whole(out, write)
