"""The verbs `info` and `list`: what a store or a run holds, and what there is to choose from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featurecache.backbones import BACKBONES
from featurecache.datasets import DATASETS
from featurecache.errors import StoreNotFoundError
from featurecache.reports import Table
from featurecache.runs import CONFIG, read_run
from featurecache.stores import STORES, FeatureStore, open_store
from heads import HEADS


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Say what a store or a run holds, from its own files alone."""

    store: Path
    """A store written by extract-features, or a run folder written by train-head."""


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """List what can be named: backbone sources, data sets, heads, store formats, timm's models."""

    what: Literal["all", "backbones", "datasets", "heads", "stores"] = "all"
    """Which kind of name; backbones also lists the models of timm."""
    filter: str | None = None
    """Keep the names that match, with * for any text, e.g. vit_*dinov2*."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Tables, and the same as one value."""

    shown: list[Table]
    value: Any

    def tables(self) -> list[Table]:
        """Return the tables."""
        return self.shown

    def json(self) -> Any:
        """Return the value."""
        return self.value


def info(config: InfoConfig) -> Facts:
    """Describe the store or run at the path.

    Raises:
        StoreNotFoundError, StoreError, RunError: nothing is there, it is neither, or the run did not finish.
    """
    if (config.store / CONFIG).exists():
        return _run_facts(config.store)
    if not config.store.exists():
        raise StoreNotFoundError(f"{config.store} does not exist. Name a store, or the folder of a run.")
    return _store_facts(open_store(config.store))


def _run_facts(folder: Path) -> Facts:
    settings, record = read_run(folder)
    rows = [(name, value) for name, value in sorted({**settings, **_flat(record)}.items())]
    return Facts([Table(f"run {folder}", ("field", "value"), rows)], {"config": settings, "record": record})


def _store_facts(store: FeatureStore) -> Facts:
    header, table = store.header, store.table()
    missing, status = sum(map(len, store.missing())), store.status()
    skipped = int(sum(1 for text in status if text not in ("ok", "")))
    splits = Counter(str(split) or "unlabelled" for split in np.asarray(table.split))
    facts = {
        "rows": header.rows, "committed": header.rows - missing, "skipped": skipped, "finished": store.finished,
        "views": header.views, "task": header.task, "classes": len(header.class_names), "splits": dict(splits),
        "backbone": dict(header.backbone), "data": dict(header.dataset),
    }  # fmt: skip
    arrays = [(a.name, "x".join(map(str, (header.rows, header.views, *a.tail))), a.dtype, _norm(store, a.name),
               f"{header.rows * header.views * a.row_bytes / 2**20:.1f}") for a in header.arrays]  # fmt: skip
    shown = [
        Table(f"store {store.path}", ("field", "value"), list(_flat(facts).items())),
        Table("arrays", ("array", "shape", "dtype", "norm", "MiB"), arrays),
    ]
    return Facts(
        shown,
        {**facts, "arrays": [dict(zip(("name", "shape", "dtype", "norm", "mib"), a, strict=True)) for a in arrays]},
    )


def _norm(store: FeatureStore, name: str) -> str:
    norms = {layer.index: layer.norm for layer in store.header.layers}
    return norms[int(name.rsplit("/", 1)[1])] if name.startswith("layers/") else ""


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        found.update(_flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item})
    return found


def list_names(config: ListConfig) -> Facts:
    """Return the names of each kind."""
    from fnmatch import fnmatch

    rooms = {"backbones": BACKBONES, "datasets": DATASETS, "heads": HEADS, "stores": STORES}
    names = {kind: room.names() for kind, room in rooms.items() if config.what in ("all", kind)}
    if config.what == "backbones":
        import timm

        names["timm models"] = [f"timm:{name}" for name in timm.list_models()]
    if config.filter:
        pattern = config.filter if "*" in config.filter else f"*{config.filter}*"
        names = {kind: [name for name in found if fnmatch(name, pattern)] for kind, found in names.items()}
    nothing = (f"no name matches {config.filter!r}",) if not any(names.values()) else ()
    shown = [
        *(Table(kind, (kind,), [(name,) for name in found]) for kind, found in names.items()),
        Table("", (), (), nothing),
    ]
    return Facts(shown, names)
