"""Every long verb on a few pictures: what stands in its folder before, its command line, and what it must leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.extraction_samples import pictures
from tests.faults.forks import Forks
from tests.featurecache.backbones.clip_samples import VIT, written

ROWS, BATCH = 64, 16
TIMES = ("seconds", "environment", "time", "command", "waited")
"""What of a record no two runs share."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One command line in a folder of its own."""

    words: Callable[[Path], list[str]]
    """Folder -> the command line."""
    stands: Mapping[str, Path] = field(default_factory=dict)
    """Name -> what is copied to it before the command."""
    spoil: Callable[[Path], None] = lambda place: None
    """What happens to the folder before the command."""


class Verbs:
    """Pictures, what the verbs begin with, and the verbs; everything is made when it is first asked for."""

    def __init__(self, forks: Forks, place: Path) -> None:
        self.forks, self.place, self._outcomes = forks, place, dict[str, dict[str, Any]]()

    def run(self, words: list[str], happens: Mapping[str, int | str] | None = None) -> tuple[int, str]:
        """Return (how a command line ended, what it printed); `happens` says what comes before which of its phases."""
        printed = self.place / "printed.txt"
        code = self.forks.wait(self.forks.start(words, printed, happens=happens or {}))
        return code, printed.read_text()

    def made(self, name: str, words: Callable[[Path], list[str]]) -> Path:
        """Return what a command line wrote to `name`."""
        out = self.place / name
        if not out.exists():
            code, said = self.run(words(out))
            assert code == 0, said
        return out

    @cached_property
    def folder(self) -> Path:
        return pictures(self.place / "animals", cat=ROWS // 2, dog=ROWS // 2)

    @cached_property
    def clip(self) -> str:
        return written(VIT, self.place)

    def extract(self, out: Path, *more: str) -> list[str]:
        """Return the words of an extraction of two layers and the embedding."""
        settings = {
            "backbone": "timm:test_vit", "weights": "random:0", "image-size": 32, "layers": "4-5", "batch-size": BATCH,
            "commit-rows": BATCH, "out": out,
        }  # fmt: skip
        options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        return ["extract-features", str(self.folder), *options, *more]

    def extracted(self, name: str, *more: str) -> Path:
        return self.made(name, lambda out: self.extract(out, *more))

    def embed(self, out: Path) -> list[str]:
        options = ["--backbone", "timm:test_vit", "--weights", "random:0", "--image-size", "32", "--batch-size", "16"]
        return ["embed", str(self.folder), *options, "--out", str(out)]

    def train(self, store: Path, out: Path) -> list[str]:
        return ["train-head", str(store), "--out", str(out), "--epochs", "6", "--batch-size", "16"]

    def told(self, store: Path) -> list[str]:
        """Return the words that extract images and what a text side says of their classes."""
        options = ["--weights", "random:0", "--layers", "last", "--batch-size", "16", "--out", str(store)]
        return ["extract-features", str(self.folder), "--backbone", self.clip, *options]

    def verb(self, name: str) -> Verb:
        return VERBS[name](self)

    def begin(self, name: str, place: Path) -> list[str]:
        """Put what stands there into a folder, and return the words of the command."""
        verb = self.verb(name)
        place.mkdir(parents=True)
        for there, source in verb.stands.items():
            copy: Callable[[Path, Path], Any] = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, place / there)
        verb.spoil(place)
        return verb.words(place)

    def outcome(self, name: str) -> dict[str, Any]:
        """Return what the command leaves in its folder when nothing interrupts it."""
        if name not in self._outcomes:
            place = self.place / f"whole {name}"
            code, said = self.run(self.begin(name, place))
            assert code == 0, said
            self._outcomes[name] = outcome(place)
        return self._outcomes[name]


def outcome(place: Path) -> dict[str, Any]:
    """Return path -> content of what must be equal however it came about; JSON without times and machines."""
    found: dict[str, Any] = {}
    for path in sorted(one for one in place.rglob("*") if one.is_file()):
        if path.name == "provenance.jsonl":
            continue
        name, content = str(path.relative_to(place)), path.read_bytes()
        is_record = path.name in ("record.json", "config.json")
        found[name] = _timeless(json.loads(content), str(place)) if is_record else content
    return found


def _timeless(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one, place) for key, one in value.items() if key not in TIMES}
    return value.replace(place, "") if isinstance(value, str) else value


def extraction(verbs: Verbs, suffix: str = ".zarr", *more: str) -> Verb:
    return Verb(
        words=lambda place: verbs.extract(place / f"x{suffix}", *more),
    )  # fmt: skip


def extraction_into_a_file(verbs: Verbs) -> Verb:
    return Verb(
        words=lambda place: verbs.extract(place / "x.h5"),
    )  # fmt: skip


def extraction_with_text(verbs: Verbs) -> Verb:
    return Verb(
        words=lambda place: verbs.told(place / "x.zarr"),
    )  # fmt: skip


def extension(verbs: Verbs) -> Verb:
    return Verb(
        stands={"x.zarr": verbs.extracted("bare.zarr", "--layers", "none")},
        words=lambda place: verbs.extract(place / "x.zarr", "--extend"),
    )  # fmt: skip


def extension_of_a_file(verbs: Verbs) -> Verb:
    return Verb(
        stands={"x.h5": verbs.extracted("bare.h5", "--layers", "none")},
        words=lambda place: verbs.extract(place / "x.h5", "--extend"),
    )  # fmt: skip


def merge(verbs: Verbs, suffix: str = ".zarr") -> Verb:
    parts = {f"{n}.zarr": verbs.extracted(f"part-{n}.zarr", "--shard", f"{n}/2") for n in range(2)}
    return Verb(
        stands=parts,
        words=lambda place: ["merge", *(str(place / name) for name in parts), "--out", str(place / f"x{suffix}")],
    )  # fmt: skip


def conversion(verbs: Verbs, suffix: str, other: str) -> Verb:
    whole = verbs.extracted(f"whole{suffix}")
    return Verb(
        stands={f"a{suffix}": whole},
        words=lambda place: ["convert", str(place / f"a{suffix}"), "--out", str(place / f"x{other}")],
    )  # fmt: skip


def narrowing(verbs: Verbs) -> Verb:
    words = ["--dtype", "float16", "--out"]
    return Verb(
        stands={"a.zarr": verbs.extracted("wide.zarr", "--dtype", "float32")},
        words=lambda place: ["convert", str(place / "a.zarr"), *words, str(place / "x.zarr")],
    )


def delete(verbs: Verbs, suffix: str = ".zarr") -> Verb:
    words = [word for number in (0, 7, 20) for word in ("--ids", f"cat/{number:03d}.png")]
    return Verb(
        stands={f"x{suffix}": verbs.extracted(f"whole{suffix}")},
        words=lambda place: ["delete", str(place / f"x{suffix}"), *words],
    )  # fmt: skip


def repair(verbs: Verbs) -> Verb:
    def spoil(place: Path) -> None:
        for name in ("embedding/c/0/0/0", "layers/cls/05/c/0/0/0", "sample_id/c/0"):
            content = bytearray((place / "x.zarr" / name).read_bytes())
            content[40] ^= 4
            (place / "x.zarr" / name).write_bytes(content)

    return Verb(
        stands={"x.zarr": verbs.extracted("whole.zarr")}, spoil=spoil,
        words=lambda place: ["verify", str(place / "x.zarr"), "--repair"],
    )  # fmt: skip


def recomputation(verbs: Verbs) -> Verb:
    return Verb(
        stands={"x.zarr": verbs.extracted("whole.zarr")},
        words=lambda place: ["verify", str(place / "x.zarr"), "--recompute", "16"],
    )


def collection(verbs: Verbs) -> Verb:
    def leave(place: Path) -> None:
        for number in range(3):
            (place / f"x.zarr/.{number}.zarr.json.999999999.tmp").write_bytes(b"cut off")

    return Verb(
        stands={"x.zarr": verbs.extracted("whole.zarr")}, spoil=leave, words=lambda place: ["gc", str(place)],
    )  # fmt: skip


def ranking(verbs: Verbs) -> Verb:
    return Verb(
        stands={"x.zarr": verbs.extracted("whole.zarr")},
        spoil=lambda place: shutil.rmtree(place / "x.zarr/scores"),
        words=lambda place: ["logme", str(place / "x.zarr"), "--metric", "logme", "--metric", "h_score"],
    )  # fmt: skip


def training(verbs: Verbs) -> Verb:
    return Verb(
        stands={"x.zarr": verbs.extracted("whole.zarr")},
        words=lambda place: verbs.train(place / "x.zarr", place / "run"),
    )  # fmt: skip


def embedding(verbs: Verbs, suffix: str) -> Verb:
    return Verb(
        words=lambda place: verbs.embed(place / f"x{suffix}"),
    )  # fmt: skip


def prediction(verbs: Verbs) -> Verb:
    run = verbs.made("run", lambda out: verbs.train(verbs.extracted("whole.zarr"), out))
    return Verb(
        stands={"run": run},
        words=lambda place: ["predict", str(place / "run"), str(verbs.folder), "--out", str(place / "said.csv")],
    )


VERBS: Mapping[str, Callable[[Verbs], Verb]] = {
    "extract": extraction,
    "extract into a file": extraction_into_a_file,
    "extract with text": extraction_with_text,
    "extract with views": lambda verbs: extraction(verbs, ".zarr", "--views", "2"),
    "extend": extension,
    "extend a file": extension_of_a_file,
    "merge": merge,
    "merge into a file": lambda verbs: merge(verbs, ".h5"),
    "convert to a file": lambda verbs: conversion(verbs, ".zarr", ".h5"),
    "convert to a folder": lambda verbs: conversion(verbs, ".h5", ".zarr"),
    "convert to fewer bits": narrowing,
    "delete": delete,
    "delete from a file": lambda verbs: delete(verbs, ".h5"),
    "repair": repair,
    "recompute": recomputation,
    "collect": collection,
    "rank": ranking,
    "train": training,
    "embed": lambda verbs: embedding(verbs, ".npy"),
    "embed into a table": lambda verbs: embedding(verbs, ".parquet"),
    "predict": prediction,
}
