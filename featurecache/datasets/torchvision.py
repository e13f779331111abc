"""A classification data set of torchvision that is on disk: `torchvision:NAME?root=PATH`.

`split=train` opens one part alone, `download=true` fetches what is not there, other options go to torchvision's class.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL.Image import Image

from featurecache.datasets import Fingerprint, ImageDataset, RowTable
from featurecache.datasets._fingerprint import check_one_class, fingerprint_of, measured
from featurecache.datasets._layout import SPLIT_FOLDERS
from featurecache.datasets._query import check_keys, queried
from featurecache.datasets._splits import divided, report_gaps
from featurecache.errors import DatasetError, DatasetNotFoundError, UnreadableSampleError
from featurecache.features import Task
from featurecache.registry import nearest
from featurecache.rgb_conversion import RgbConversion

log = logging.getLogger("featurecache")

CONVERT = RgbConversion()
PARTS = ("train", "trainval", "val", "valid", "test")
"""What torchvision calls parts. "trainval" is taken where there is no "train": else its samples would be there twice."""
TARGETS = ("targets", "labels", "_labels", "y")
"""Where its classes keep their labels, so that they are known before any image is decoded."""


@dataclass(frozen=True, slots=True, eq=False)
class TorchvisionReader:
    """Row -> picture, from the parts of a data set of torchvision, one after the other."""

    parts: tuple[Any, ...]
    places: list[tuple[int, int]]
    """(part, index in it) of every row."""
    sample_ids: list[str]

    def __call__(self, row: int) -> Image:
        """Return the RGB picture of one row, as torchvision decodes it."""
        part, index = self.places[row]
        try:
            return CONVERT(self.parts[part][index][0])
        except Exception as error:  # on damaged files the loaders of torchvision raise nearly everything there is
            raise UnreadableSampleError(self.sample_ids[row], str(error) or type(error).__name__) from None

    def content(self, row: int) -> bytes:
        """Return the size and the pixels of one row."""
        picture = self(row)
        return f"{picture.size}".encode() + picture.tobytes()


def open(
    spec: str, *, split_seed: int = 0, task: Task | None = None, fingerprint: Fingerprint = "sizes"
) -> ImageDataset:
    """Open the data set NAME of `torchvision.datasets`; its own parts are the splits.

    Sample ids are part/index. There is not one file for each sample, so "sizes" covers what "names" covers, ids and
    classes; "content" covers the pixels.
    """
    name, options = queried(spec)
    check_one_class(task, f"torchvision:{spec}")
    made = _class(name)
    wanted, asked = _arguments(name, made, options)
    parts = _parts(name, made, wanted, options.get("split"))
    targets = {part: _targets(name, dataset) for part, dataset in parts.items()}
    rows = sorted(
        (f"{part}/{index:07d}", p, index) for p, part in enumerate(parts) for index in range(len(targets[part]))
    )
    ids = [row[0] for row in rows]
    target = np.array([targets[row[0].split("/")[0]][row[2]] for row in rows], dtype=np.int64)
    classes = _class_names(next(iter(parts.values())), int(target.max(initial=-1)) + 1)
    blank = [""] * len(ids)
    given = [SPLIT_FOLDERS.get(row[0].split("/")[0], "") for row in rows]
    split, rule = divided(
        ids, blank, given if any(given) else None, target, split_seed, by="torchvision", spec=f"torchvision:{name}"
    )
    report_gaps(classes, target, split, f"torchvision:{name}")
    read = TorchvisionReader(tuple(parts.values()), [row[1:] for row in rows], ids)
    measures = measured(fingerprint, [0] * len(ids), read)
    query = "&".join(f"{key}={value}" for key, value in asked.items())
    return ImageDataset(
        name=name,
        spec=f"torchvision:{name}" + (f"?{query}" if query else ""),
        table=RowTable(sample_id=ids, target=target, split=split, domain=blank, group=blank),
        class_names=classes,
        task="classification",
        read=read,
        measures=measures,
        identity={
            "name": name,
            "fingerprint": fingerprint_of(fingerprint, ids, measures, target, classes),
            "rows": len(ids),
            "split_rule": rule,
        },
    )


def _class(name: str) -> Any:
    from torchvision import datasets

    known = [
        n
        for n in datasets.__all__
        if inspect.isclass(getattr(datasets, n)) and "transform" in _parameters(getattr(datasets, n))
    ]
    if name not in known:
        raise DatasetError(
            f"torchvision has no data set of images called {name!r}.{nearest(name, known)} Known: {', '.join(known)}."
        )
    return getattr(datasets, name)


def _parameters(made: Any) -> list[str]:
    """Return the names that the class takes, those of its parents too where it passes them on."""
    found: list[str] = []
    for cls in inspect.getmro(made):
        if "__init__" in vars(cls):
            parameters = inspect.signature(cls).parameters
            found += parameters
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
    return found


def _arguments(name: str, made: Any, options: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return (what the class is called with, what opens the same data set again)."""
    parameters = _parameters(made)
    ours = {"self", "train", "transform", "target_transform", "transforms", "loader", "args", "kwargs"}
    check_keys(options, sorted({*parameters, "split"} - ours), f"torchvision:{name}")
    if "root" in parameters and "root" not in options:
        raise DatasetError(f"torchvision:{name} lies somewhere: say torchvision:{name}?root=PATH.")
    asked = {key: value for key, value in options.items() if key != "download"}
    if "root" in asked:
        asked["root"] = str(Path(asked["root"]).expanduser().resolve())
    wanted = {key: value if key == "root" else yaml.safe_load(value) for key, value in asked.items() if key != "split"}
    if yaml.safe_load(options.get("download", "false")) is True:
        source = getattr(made, "mirrors", None) or getattr(made, "url", None) or "where torchvision finds it"
        log.info("torchvision downloads %s from %s into %s", name, source, asked["root"])
        wanted["download"] = True
    return wanted, asked


def _parts(name: str, made: Any, wanted: dict[str, Any], only: str | None) -> dict[str, Any]:
    """Return part -> data set, for all parts that the class has, or for one."""
    parameters = _parameters(made)
    if "train" in parameters:
        # where a class has both (EMNIST), `split` is not the part but which letters there are
        more = {"split": only} if only and "split" in parameters else {}
        asked = [only] if only and not more else ["train", "test"]
        if asked[0] not in ("train", "test"):
            raise DatasetError(f"torchvision:{name} has the parts train and test, not {only!r}.")
        return {part: _made(name, made, {**wanted, **more, "train": part == "train"}) for part in asked}
    if "split" not in parameters:
        if only:
            raise DatasetError(f"torchvision:{name} has no parts, so split={only} cannot be.")
        return {"all": _made(name, made, wanted)}
    found: dict[str, Any] = {}
    for part in [only] if only else PARTS:
        if part == "trainval" and "train" in found:
            continue
        try:
            found[part] = _made(name, made, {**wanted, "split": part})
        except DatasetError:
            raise
        except ValueError as error:
            if only or "argument split" not in str(error):
                raise DatasetError(f"torchvision:{name} cannot be opened: {error}") from None
    return found


def _made(name: str, made: Any, arguments: dict[str, Any]) -> Any:
    try:
        return made(**arguments)
    except (RuntimeError, FileNotFoundError) as error:
        which = arguments.get("split") or {True: "train", False: "test"}.get(arguments.get("train", ""), "")
        raise DatasetNotFoundError(
            f"torchvision finds no {name} {which} in {arguments.get('root')}: {error}. Name its folder with root=PATH, one "
            "part that is there with split=NAME, or let torchvision fetch it with download=true."
        ) from None
    except TypeError as error:
        raise DatasetError(f"torchvision:{name} cannot be opened with {arguments}: {error}") from None


def _targets(name: str, dataset: Any) -> Sequence[int]:
    """Return the class of every sample, from the labels it keeps where they are what it gives, else by asking for each."""
    found: list[Any] = [getattr(dataset, key, None) for key in TARGETS]
    kept = next((labels for labels in found if hasattr(labels, "__len__") and len(labels) == len(dataset)), None)
    looked = sorted({0, len(dataset) // 2, len(dataset) - 1}) if len(dataset) else []
    try:
        if kept is not None and all(int(kept[i]) == int(dataset[i][1]) for i in looked):
            return [int(label) for label in kept]
        return [int(dataset[i][1]) for i in range(len(dataset))]
    except (TypeError, ValueError, RuntimeError) as error:
        raise DatasetError(f"torchvision:{name} does not give one class for each image ({error}).") from None


def _class_names(dataset: Any, count: int) -> tuple[str, ...]:
    """Return the names that torchvision knows, numbers where it knows none; a name that is there twice gets its number."""
    named = [", ".join(c) if isinstance(c, tuple) else str(c) for c in getattr(dataset, "classes", ())]
    names = named if len(named) >= count else [str(number) for number in range(count)]
    times = Counter(names)
    return tuple(f"{name} ({number})" if times[name] > 1 else name for number, name in enumerate(names))
