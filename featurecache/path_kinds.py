"""What lies at a path: a feature store, a run, pictures, an archive; and which command is right for what was named instead.

Known by the files alone, at a glance: nothing is opened as what it seems to be.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

Kind = Literal[
    "nothing", "store", "zarr", "run", "unfinished run", "comparison", "export", "folder of runs", "folder of stores",
    "images", "image", "archive", "table", "weights", "file", "empty folder", "folder",
]  # fmt: skip
Wanted = Literal["store", "run", "data"]
"""What a command takes: a feature store, a run folder, or a data set of pictures."""

ARTIFACTS: tuple[Kind, ...] = ("store", "run", "unfinished run", "comparison", "export")
"""What this program writes, which is never a data set."""
LOOKED_AT = 2000
"""Entries of a folder that are looked at for pictures, those below included."""
STORES = (".zarr", ".h5", ".hdf5")
SUFFIXES: Mapping[str, Kind] = {
    ".zip": "archive", ".tar": "archive", ".tgz": "archive", ".gz": "archive", ".csv": "table", ".tsv": "table",
    ".parquet": "table", ".safetensors": "weights", ".pt": "weights", ".pth": "weights", ".ckpt": "weights", ".bin": "weights",
}  # fmt: skip
PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P4", b"P5", b"P6")
"""What picture files begin with; WebP begins as RIFF does."""


def identify_path(path: Path, *, pictures: bool = True) -> Kind:
    """Return what lies at a path; without `pictures`, of a folder of others only that it is one."""
    if not path.exists():
        return "nothing"
    if path.is_file():
        return _identify_file(path)
    if not path.is_dir():
        return "file"
    names = set(os.listdir(path))
    if "ledger.jsonl" in names:
        return "store"
    if "zarr.json" in names or ".zgroup" in names or ".zarray" in names:
        return "zarr"
    if {"predict.py", "model.py", "config.json"} <= names:
        return "export"
    if "config.json" in names:
        return _identify_run(path, names)
    inside = [name for name in names if not name.startswith(".")]
    if any((path / name / "record.json").exists() or (path / name / "config.json").exists() for name in inside):
        return "folder of runs"
    if _stores_in(path):
        return "folder of stores"
    if not names:
        return "empty folder"
    return "images" if pictures and any(map(_is_picture, _files(path))) else "folder"


def _identify_file(path: Path) -> Kind:
    if path.suffix.lower() in (".h5", ".hdf5"):
        return "store"
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    return "image" if _is_picture(path) else "file"


def _identify_run(path: Path, names: set[str]) -> Kind:
    if "record.json" not in names:
        return "unfinished run" if {"store", "stores", "data"} & _read_json(path / "config.json").keys() else "folder"
    return "run" if "class_names" in _read_json(path / "record.json") else "comparison"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _stores_in(path: Path) -> list[str]:
    found = [entry for entry in path.iterdir() if entry.suffix in STORES and not entry.name.startswith(".")]
    return sorted(one.name for one in found if one.is_file() or (one / "ledger.jsonl").exists())


def _runs_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if (entry / "record.json").exists())


def _files(path: Path) -> Iterator[Path]:
    """Yield some of the files in a folder and below it."""
    entries = (Path(place) / name for place, _, files in os.walk(path) for name in sorted(files))
    yield from itertools.islice((entry for entry in entries if not entry.name.startswith(".")), LOOKED_AT)


def _is_picture(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(PICTURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def explain_path(path: Path, wanted: Wanted) -> str | None:
    """Return what lies at a path instead of what is wanted, and the command that would be right; None: nothing is known of it."""
    kind = identify_path(path)
    if kind == "folder of runs" and wanted == "store" and _stores_in(path):
        kind = "folder of stores"
    way = _WAYS[wanted].get(kind)
    if way is None or kind not in _CALLED:
        return None
    details = {"inside": _list_inside(path, kind), "source": _describe_source(path, wanted)}
    return f"it is {_CALLED[kind]}. {way.format(path=shlex.quote(str(path)), name=_name(path), **details)}"


_CALLED: Mapping[Kind, str] = {
    "store": "a feature store", "zarr": "a Zarr group of another program", "run": "the folder of a run",
    "unfinished run": "the folder of a run that did not finish", "comparison": "the folder of a comparison",
    "export": "an exported run", "folder of runs": "a folder of runs", "folder of stores": "a folder with stores in it",
    "images": "a folder of images", "image": "a picture", "archive": "an archive", "table": "a table",
    "weights": "a file of weights",
}  # fmt: skip


def _name(path: Path) -> str:
    """Return a name for a store of what lies at the path."""
    return shlex.quote(path.resolve().name.partition(".")[0] or "features")


def _list_inside(path: Path, kind: Kind) -> str:
    """Return the stores or the runs in a folder of them."""
    names = _stores_in(path) if kind == "folder of stores" else _runs_in(path) if kind == "folder of runs" else []
    shown = ", ".join(str(path / name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _describe_source(path: Path, wanted: Wanted) -> str:
    """Return what the config of a run says of the store, or of the images, that it was trained on."""
    settings = _read_json(path / "config.json") if path.is_dir() else {}
    known = settings.get("data") if wanted == "data" else settings.get("store") or settings.get("stores")
    if not known:
        return ""
    return f": {', '.join(known) if isinstance(known, list) else known}"


_EXTRACT = "Extract its features first: featurecache extract-features {path} --backbone NAME --out {name}.zarr"
_TRAIN = "Train a head first: featurecache train-head {name}.zarr --out RUN"
_LOOK = "Its contents: featurecache info {path}"
_PAGE = "featurecache report {path} --out report.html"

_WAYS: Mapping[Wanted, Mapping[Kind, str]] = {
    "store": {
        "zarr": "It has no ledger, so nothing says which rows are real. Name a store that extract-features wrote",
        "run": "Name the store that it was trained on{source}. To look at the run: featurecache info {path}, or " + _PAGE,
        "unfinished run": "Name the store that it was trained on{source}. To finish the run, give its command again",
        "comparison": "Name a store that it compared on{source}. Its results: featurecache info {path}",
        "export": "It predicts by itself: python {path}/predict.py IMAGE",
        "folder of runs": "Name a store. The runs in it ({inside}) as one page: " + _PAGE,
        "folder of stores": "Name one of them: {inside}",
        "images": _EXTRACT, "archive": _EXTRACT, "table": "If it lists images and labels, extract their features first: "
        "featurecache extract-features {path} --backbone NAME --out {name}.zarr",
        "image": "Name the folder that it is in to extract-features, or ask a run of it: featurecache predict RUN {path}",
        "weights": "Give it as --weights to extract-features, and name the store that comes of it",
    },
    "run": {
        "store": "Train a head on it first: featurecache train-head {path} --out RUN. " + _LOOK,
        "zarr": "Name a folder that train-head, train-online or train-student wrote",
        "export": "It predicts by itself: python {path}/predict.py IMAGE. Name the run that it was exported from",
        "folder of runs": "Name one of the runs in it: {inside}",
        "folder of stores": "Train a head on one of them first: featurecache train-head STORE --out RUN, with STORE of {inside}",
        "images": "To train on it: " + _EXTRACT[0].lower() + _EXTRACT[1:] + ", then featurecache train-head {name}.zarr --out RUN",
        "archive": _EXTRACT + ", then train on that: featurecache train-head {name}.zarr --out RUN",
        "table": _EXTRACT + ", then train on that: featurecache train-head {name}.zarr --out RUN",
        "image": "Name the run first, then the pictures: featurecache predict RUN {path}",
        "weights": "Name the folder of the run that it lies in",
    },
    "data": {
        "store": "It holds features and no pictures: name the images that it was made of. " + _LOOK,
        "zarr": "Name a folder of images, an archive of one, or a manifest",
        "run": "It holds no pictures: name the images{source}. To look at the run: featurecache info {path}",
        "unfinished run": "It holds no pictures: name the images{source}",
        "comparison": "It holds no pictures: name the images{source}. Its results: featurecache info {path}",
        "export": "It holds no pictures. It predicts by itself: python {path}/predict.py IMAGE",
        "folder of runs": "It holds no pictures. The runs in it ({inside}) as one page: " + _PAGE,
        "folder of stores": "They hold features and no pictures ({inside}): name the images that they were made of",
    },
}  # fmt: skip
"""What is wanted -> what lies there -> the way out."""


def suggest_path(path: Path, suffixes: tuple[str, ...] = ()) -> str:
    """Return " Did you mean ...?" for what lies beside a path that is not there and has nearly its name; else ""."""
    try:
        beside = sorted(os.listdir(path.parent))
    except OSError:
        return ""
    named = [f"{path.name}{suffix}" for suffix in suffixes if f"{path.name}{suffix}" in beside]
    if suffixes and not named:
        beside = [name for name in beside if name.endswith(suffixes)]
    close = named or difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)
    return f" Did you mean {path.with_name(close[0])}?" if close else ""
