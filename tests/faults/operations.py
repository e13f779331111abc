"""Every command that makes or changes a store, on a small one: what stands there before, and what the command must leave."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from featurecache.stores import create_store, examine_store, open_store
from tests.extraction_samples import pictures
from tests.faults.forks import Forks

BATCH = 16
NOBODY = 2**30
"""Number of a process that no machine has."""
DELETED = tuple(f"{kind}/{number:03d}.png" for kind in ("cat", "dog") for number in range(0, 100, 7))


class Samples:
    """Pictures, and the finished stores of them that the commands begin with; each is made when it is first asked for."""

    def __init__(self, forks: Forks, place: Path) -> None:
        self._forks, self._place = forks, place

    def call(self, folder: Path, out: Path, *more: str) -> list[str]:
        """Return the words of an extraction, of two layers and the embedding."""
        settings = {
            "backbone": "timm:test_vit", "weights": "random:0", "image-size": 32, "layers": "4-5", "batch-size": BATCH,
            "commit-rows": BATCH, "out": out,
        }  # fmt: skip
        options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        return ["extract-features", str(folder), *options, *more]

    def extracted(self, name: str, *more: str, folder: Path | None = None) -> Path:
        """Return a finished store that one uninterrupted extraction made."""
        out = self._place / name
        if not out.exists():
            printed = self._place / "printed.txt"
            assert self._forks.wait(self._forks.start(self.call(folder or self.folder, out, *more), printed)) == 0, (
                printed.read_text()
            )
        return out

    @cached_property
    def folder(self) -> Path:
        """Pictures, in three classes."""
        return pictures(self._place / "animals", cat=100, dog=100, emu=56)

    @cached_property
    def grown(self) -> tuple[Path, Path]:
        """Pictures, and a store of them from when there were fewer."""
        folder = pictures(self._place / "grown", cat=60, dog=40)
        store = self.extracted("small.zarr", folder=folder)
        for number in range(100):
            copy = folder / f"cat/new-{number}.png"
            shutil.copy(folder / "dog/000.png", copy)
            with copy.open("ab") as file:
                file.write(b"%d" % number)
        return folder, store


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One command in a folder of its own."""

    stands: Mapping[str, Path] = field(default_factory=dict)
    """Name -> what is copied to it before the command."""
    command: Callable[[Path], list[str]]
    """Folder -> words of the command line."""
    stores: Mapping[str, Path | None]
    """Name -> the store with the values that its committed rows must have; None: those of the uninterrupted one."""
    makes: bool = False
    """Whether the command makes the store, which may then be absent until it ends."""
    spoil: Callable[[Path], None] = lambda place: None
    """What happens to the folder before the command."""


def extraction(samples: Samples, suffix: str = ".zarr") -> Operation:
    return Operation(
        command=lambda place: samples.call(samples.folder, place / f"x{suffix}"),
        stores={f"x{suffix}": None},
        makes=True,
    )


def extension_by_layers(samples: Samples, suffix: str = ".zarr") -> Operation:
    return Operation(
        stands={f"x{suffix}": samples.extracted(f"bare{suffix}", "--layers", "none")},
        command=lambda place: samples.call(samples.folder, place / f"x{suffix}", "--extend"), stores={f"x{suffix}": None},
    )  # fmt: skip


def extension_by_views(samples: Samples) -> Operation:
    return Operation(
        stands={"x.zarr": samples.extracted("whole.zarr")},
        command=lambda place: samples.call(samples.folder, place / "x.zarr", "--views", "2", "--extend"),
        stores={"x.zarr": None},
    )


def extension_by_samples(samples: Samples) -> Operation:
    folder, store = samples.grown
    return Operation(
        stands={"x.zarr": store}, command=lambda place: samples.call(folder, place / "x.zarr", "--extend"),
        stores={"x.zarr": None},
    )  # fmt: skip


def merge(samples: Samples, suffix: str = ".zarr") -> Operation:
    parts = {f"{n}.zarr": samples.extracted(f"part-{n}.zarr", "--shard", f"{n}/2") for n in range(2)}
    return Operation(
        stands=parts, stores={f"x{suffix}": None}, makes=True,
        command=lambda place: ["merge", *(str(place / name) for name in parts), "--out", str(place / f"x{suffix}")],
    )  # fmt: skip


def delete(samples: Samples, suffix: str = ".zarr") -> Operation:
    whole = samples.extracted(f"whole{suffix}")
    words = [word for name in DELETED for word in ("--ids", name)]
    return Operation(
        stands={f"x{suffix}": whole}, command=lambda place: ["delete", str(place / f"x{suffix}"), *words],
        stores={f"x{suffix}": whole},
    )  # fmt: skip


def repair(samples: Samples, suffix: str = ".zarr") -> Operation:
    whole = samples.extracted(f"whole{suffix}")
    return Operation(
        stands={f"x{suffix}": whole}, command=lambda place: ["verify", str(place / f"x{suffix}"), "--repair"],
        stores={f"x{suffix}": whole}, spoil=lambda place: _damage(place / f"x{suffix}", whole),
    )  # fmt: skip


def _damage(store: Path, whole: Path) -> None:
    """Damage features, the row table and what is said of the rows, so that the store still opens."""
    if store.is_file():
        values = open_store(whole).read("layers/cls/05", slice(0, 256))
        content = store.read_bytes()
        for row in (3, 100, 101, 255):
            _flip(store, content.index(values[row].tobytes()) + 5)
    else:
        for name in ("embedding/c/0/0/0", "layers/cls/04/c/0/0/0", "layers/cls/05/c/1/0/0", "sample_id/c/0"):
            _flip(store / name, 2000)
    assert examine_store(store).damages


def _flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def conversion_to_one_file(samples: Samples) -> Operation:
    whole = samples.extracted("whole.zarr")
    return Operation(
        stands={"a.zarr": whole}, stores={"x.h5": whole}, makes=True,
        command=lambda place: ["convert", str(place / "a.zarr"), "--out", str(place / "x.h5")],
    )  # fmt: skip


def conversion_of_dtype(samples: Samples, suffix: str = ".zarr") -> Operation:
    words = ["--dtype", "float16", "--out"]
    return Operation(
        stands={"wide.zarr": samples.extracted("wide.zarr", "--dtype", "float32")}, stores={f"x{suffix}": None}, makes=True,
        command=lambda place: ["convert", str(place / "wide.zarr"), *words, str(place / f"x{suffix}")],
    )  # fmt: skip


def gc(samples: Samples) -> Operation:
    whole = samples.extracted("whole.zarr")
    return Operation(
        stands={"x.zarr": whole}, stores={"x.zarr": whole, "y.zarr": whole}, spoil=lambda place: _leave(place, whole),
        command=lambda place: ["gc", str(place)],
    )  # fmt: skip


def _leave(place: Path, whole: Path) -> None:
    """Leave what a killed creation leaves, and what a killed extraction leaves in its store."""
    reference = open_store(whole)
    store = create_store(place / "y.zarr", reference.header, reference.table(), chunk_multiple=BATCH)
    for start in range(0, 128, BATCH):
        rows = slice(start, start + BATCH)
        values = {spec.name: reference.read(spec.name, rows)[:, None] for spec in reference.header.arrays}
        store.write(range(start, start + BATCH), values, {})
        store.commit()
    store.close()
    for number in range(40):
        (place / f"y.zarr/.{number}.zarr.json.{NOBODY}.tmp").write_bytes(b"cut off")
        left = place / f".{number}.zarr.{socket.gethostname()}.{NOBODY}.tmp"
        for part in range(10):
            (left / f"{part}").mkdir(parents=True)
            (left / f"{part}/zarr.json").write_bytes(b"{}")


OPERATIONS: Mapping[str, Callable[[Samples], Operation]] = {
    "extraction": extraction,
    "extension by layers": extension_by_layers,
    "extension by views": extension_by_views,
    "extension by new samples": extension_by_samples,
    "merge": merge,
    "delete": delete,
    "repair": repair,
    "gc": gc,
    "convert --dtype": conversion_of_dtype,
    "extraction into one file": lambda samples: extraction(samples, ".h5"),
    "extension of one file": lambda samples: extension_by_layers(samples, ".h5"),
    "conversion into one file": conversion_to_one_file,
    "merge into one file": lambda samples: merge(samples, ".h5"),
    "delete from one file": lambda samples: delete(samples, ".h5"),
    "repair of one file": lambda samples: repair(samples, ".h5"),
    "convert --dtype into one file": lambda samples: conversion_of_dtype(samples, ".h5"),
}
