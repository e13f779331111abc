"""The verbs `info` and `list`: what a store or a run holds, and what there is to choose from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featurecache.checks import Config, check
from featurecache.declarations import read_constant
from featurecache.errors import StoreNotFoundError, UnknownNameError
from featurecache.path_kinds import explain_path, identify_path, suggest_path
from featurecache.places import Place
from featurecache.registry import plain
from featurecache.reports import Displayed, Table
from pipelines._members import KINDS, example_of, members, options_of

if TYPE_CHECKING:
    from featurecache.stores import FeatureStore


@dataclass(frozen=True, kw_only=True)
class InfoConfig(Config):
    """Say what a store or a run holds, from its own files alone."""

    store: Place
    """A store written by extract-features (s3://bucket/x.zarr too), or a run folder of any training."""


@dataclass(frozen=True, kw_only=True)
class ListConfig(Config):
    """List what can be named, such as heads or methods of training, and the options of one of them."""

    what: Literal[
        "all",
        "analyses",
        "backbones",
        "datasets",
        "heads",
        "objectives",
        "peft",
        "protocols",
        "recipes",
        "scores",
        "stores",
    ] = "all"
    """Which kind of name; backbones also lists the models of timm; recipes are listed alone."""
    name: str | None = None
    """One of that kind, such as lora of peft: its options, with their defaults."""
    filter: str | None = None
    """Keep the names that match, with * for any text, e.g. vit_*dinov2*."""

    def __post_init__(self) -> None:
        check(
            (self.name is None or self.what in KINDS, f"name the kind that {self.name!r} is of, such as heads or peft")
        )


@dataclass(frozen=True, slots=True)
class Facts(Displayed):
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
    from featurecache.runs import CONFIG

    if isinstance(config.store, Path) and (config.store / CONFIG).exists():
        return _run_facts(config.store)
    from featurecache.stores import open_store, store_exists

    if not store_exists(config.store):
        near = suggest_path(config.store) if isinstance(config.store, Path) else ""
        raise StoreNotFoundError(f"{config.store} does not exist. Name a store, or the folder of a run.{near}")
    if isinstance(config.store, Path) and (why := _explain_other_kind(config.store)):
        raise StoreNotFoundError(f"{config.store} is neither a store nor a run: {why}.")
    return _store_facts(open_store(config.store))


def _explain_other_kind(path: Path) -> str | None:
    """Return what lies at a path that is neither a store nor a run, and how to look at it; None: nothing is known of it."""
    kind = identify_path(path)
    if kind in ("images", "archive", "table"):
        return f"it is a data set or its pictures. To look at them: featurecache data check {path}"
    return explain_path(path, "run" if kind == "folder of runs" else "store")


def _run_facts(folder: Path) -> Facts:
    from featurecache.runs import holds_head, read_run
    from pipelines.training.closing import describe_parameters, describe_training
    from pipelines.training.reporting import TrainReport

    settings, record = read_run(folder)
    if not holds_head(record):
        return _comparison_facts(folder, settings, record)
    asked = {name: value for name, value in settings.items() if name not in ("features", "head")}
    features = record["features"]
    facts = {
        "head": record["head"], "store": asked.pop("store", asked.pop("data", None)), "backbone": features["backbone"]["name"],
        "weights": features["backbone"].get("weights"), "data": features["data"]["name"], "task": record["task"],
        "classes": len(record["class_names"]), "rows": record["rows"], "selected_by": record["selected_by"],
        "fitted": describe_training(record), "parameters": describe_parameters(record), "closed_form": record["closed_form"], "asked": asked,
    }  # fmt: skip
    known = [(name, value) for name, value in _flat(facts).items() if value is not None]
    metrics = TrainReport(folder, record).tables()
    return Facts([Table(f"run {folder}", ("field", "value"), known), *metrics], {"config": settings, "record": record})


def _comparison_facts(folder: Path, settings: dict[str, Any], record: dict[str, Any]) -> Facts:
    """Describe what compared several heads or methods, with the tables that it ended with."""
    from pipelines.online.reporting import CompareReport, SweepReport
    from pipelines.trialling.reporting import ProtocolReport

    report = CompareReport if "lines" in record else ProtocolReport if "protocol" in record else SweepReport
    asked = {name: value for name, value in settings.items() if name != "features"}
    known = [(name, value) for name, value in _flat(asked).items() if value is not None]
    shown = [Table(f"comparison {folder}", ("field", "value"), known), *report(folder, record).tables()]
    return Facts(shown, {"config": settings, "record": record})


def _store_facts(store: FeatureStore) -> Facts:
    import numpy as np

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
    arrays += [
        (a.name, "x".join(map(str, a.tail)), a.dtype, "", f"{a.row_bytes / 2**20:.1f}") for a in header.constants
    ]
    shown = [
        Table(f"store {store.path}", ("field", "value"), list(_flat({**facts, **_said(header.prompts)}).items())),
        Table("arrays", ("array", "shape", "dtype", "norm", "MiB"), arrays),
    ]
    return Facts(
        shown,
        {
            **facts,
            "prompts": list(header.prompts),
            "arrays": [dict(zip(("name", "shape", "dtype", "norm", "mib"), a, strict=True)) for a in arrays],
        },
    )


def _said(prompts: Sequence[str]) -> dict[str, str]:
    more = f", and {len(prompts) - 3} more" if len(prompts) > 3 else ""
    return {"prompts": ", ".join(map(repr, prompts[:3])) + more} if prompts else {}


def _norm(store: FeatureStore, name: str) -> str:
    norms = {layer.index: layer.norm for layer in store.header.layers}
    return norms[int(name.rsplit("/", 1)[1])] if name.startswith("layers/") else ""


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        found.update(_flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item})
    return found


def list_names(config: ListConfig) -> Facts:
    """Return the names of each kind, with what they are; models of timm with licence and paper."""
    if config.name is not None:
        return _member_facts(config.what, config.name)
    found = {kind: members(kind) for kind in KINDS if config.what in ("all", kind) and kind != "objectives"}
    if config.what in ("all", "objectives"):
        found["objectives"] = _objectives()
    if config.what == "recipes":
        found["recipes"] = _recipes()
    if config.what == "backbones":
        found["timm models"] = _timm_models()
    if config.filter:
        found = {k: [item for item in items if _matches(item["name"], config.filter)] for k, items in found.items()}
    shown = [_listed(kind, items) for kind, items in found.items() if items]
    return Facts(shown or [Table("", (), (), (f"no name matches {config.filter}",))], found)


def _member_facts(kind: str, name: str) -> Facts:
    """Describe one member: what it is, its paper, and a line for every option."""
    known = _objectives() if kind == "objectives" else members(kind)
    about = next((one for one in known if one["name"] == plain(name)), None)
    if about is None:
        KINDS[kind].room.stem(name)
        raise UnknownNameError(f"there is no {KINDS[kind].noun} called {name!r}. See featurecache list {kind}.")
    options = options_of(kind, name) if plain(name) in KINDS[kind].room.names() else []
    rows = [tuple(one.values()) for one in options]
    notes = [about["what"] + ".", *([about["paper"]] if about["paper"] else [])]
    notes += [f"For example: {text}"] if (text := example_of(kind, name, options)) else []
    notes += [] if options else [f"{about['name']} has no options"]
    title = f"{KINDS[kind].noun} {about['name']}"
    return Facts([Table(title, ("option", "type", "default", "meaning"), rows, notes)], {**about, "options": options})


def _objectives() -> list[Mapping[str, Any]]:
    """Return what students are trained for; two of the names have no distance, and so no file of that name."""
    about = {one["name"]: one for one in members("objectives")}
    probe_name = read_constant("pipelines.objectives", "PROBE")
    names = ["none", *(name for name in about if name != "cross_entropy"), probe_name]
    probe = "No student: a head on the joined features of all teachers, from their stores"
    return [
        {"name": name, "what": probe, "paper": ""} if name == probe_name
        else {**about["cross_entropy" if name == "none" else name], "name": name}
        for name in names
    ]  # fmt: skip


def _recipes() -> list[Mapping[str, Any]]:
    from pipelines.online.settings import TrainOnlineConfig
    from pipelines.recipes import names, recipe

    found = [recipe(name, TrainOnlineConfig) for name in names()]
    return [{"name": r.name, "settings": r.cells, "tuned on": r.tuned, "paper": r.paper} for r in found]


def _matches(name: str, words: str) -> bool:
    pattern = words if "*" in words else f"*{words}*"
    return fnmatch(name, pattern) or fnmatch(name.partition(":")[2], pattern)


def _timm_models() -> list[Mapping[str, Any]]:
    import timm

    configs = {name: timm.models.get_pretrained_cfg(name) for name in timm.list_models()}
    return [
        {
            "name": f"timm:{name}",
            "weights": config.tag if config and config.has_weights else "",
            "licence": (config.license if config else None) or "not stated",
            "paper": (config.paper_ids if config else None) or "",
        }
        for name, config in configs.items()
    ]


def _listed(kind: str, items: list[Mapping[str, Any]]) -> Table:
    columns = [name for name in items[0] if any(item[name] for item in items)]
    return Table(kind, columns, [[item[name] for name in columns] for item in items])
