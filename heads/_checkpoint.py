"""A head on disk: its tensors as safetensors, what it was built from as JSON beside them, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from featurecache.checks import bind_options
from featurecache.errors import ConfigError, RunError
from featurecache.files import json_bytes, write_atomic
from heads import HEADS, HeadSpec
from heads._published import Published

TENSORS, BUILD = "head.safetensors", "head.json"


def build_head(name: str, spec: HeadSpec, options: Mapping[str, Any]) -> nn.Module:
    """Build the head called `name`.

    Raises:
        UnknownNameError: there is no such head.
        ConfigError: lists every option that is wrong.
    """
    room = HEADS.load(name)
    built: nn.Module = room.build(spec, **bind_options(room.build, options, f"head {name}"))
    return built


def refusals(name: str, spec: HeadSpec, options: Mapping[str, Any], published: Published | None = None) -> list[str]:
    """Return every reason why the head cannot be built, or begin at published values.

    It is tried without memory, and no random number is drawn.
    """
    try:
        with torch.device("meta"):
            head = build_head(name, spec, options)
    except ConfigError as refused:
        return refused.problems
    return published.refusals(name, head) if published else []


def save_head(folder: Path, head: nn.Module, name: str, spec: HeadSpec, options: Mapping[str, Any]) -> None:
    """Write the head's tensors and what rebuilds it: without the files that options named, where the head says how."""
    rebuilding = {**options, **getattr(head, "travelling", {})}
    facts = {
        "head": name, "options": rebuilding, "resolved": _resolve(name, rebuilding), "shapes": {k: list(v) for k, v in spec.shapes.items()},
        "num_classes": spec.num_classes, "task": spec.task, "combine": spec.combine,
        "standardised": bool(spec.statistics), "constants": sorted(spec.constants),
    }  # fmt: skip
    write_atomic(folder / BUILD, json_bytes(facts))
    tensors = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
    tensors |= {f"constants.{key}": value.detach().cpu().contiguous() for key, value in spec.constants.items()}
    write_atomic(folder / TENSORS, save(tensors))


def _resolve(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option that a head was built with, the defaults too: they may be others when it is loaded."""
    return {**(HEADS.load(name).build.__kwdefaults__ or {}), **options}


def _options_of_saved(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a saved head; one without "resolved" was saved when the defaults were those of `FORMER`."""
    return facts.get("resolved") or {**getattr(HEADS.load(facts["head"]), "FORMER", {}), **facts["options"]}


def built_as(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return (name, options) of the head that `save_head` wrote.

    Raises:
        RunError: there is none that can be read.
    """
    try:
        facts = json.loads((folder / BUILD).read_text(encoding="utf-8"))
        return facts["head"], facts["options"]
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(folder, error) from error


def load_head(folder: Path) -> tuple[nn.Module, HeadSpec]:
    """Return (head in eval mode, its spec) as `save_head` wrote them.

    Raises:
        RunError: a file is missing or damaged.
    """
    try:
        facts = json.loads((folder / BUILD).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        spec = _spec(facts, tensors)
        with torch.random.fork_rng(devices=[]):  # the start that is drawn here is overwritten
            head = build_head(facts["head"], spec, _options_of_saved(facts))
        head.load_state_dict({key: value for key, value in tensors.items() if not key.startswith("constants.")})
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _unreadable(folder, error) from error
    return head.eval(), spec


def _unreadable(folder: Path, error: Exception) -> RunError:
    why = f"{type(error).__name__}: {error}"
    return RunError(f"{folder} holds no head that can be read ({why}). Train it again into a new --out.")


def _spec(facts: dict[str, Any], tensors: Mapping[str, Tensor]) -> HeadSpec:
    shapes = {name: tuple(shape) for name, shape in facts["shapes"].items()}
    statistics = {}
    if facts["standardised"]:
        for number, name in enumerate(shapes):
            statistics[name] = (tensors[f"inputs.mean_{number}"], tensors[f"inputs.deviation_{number}"])
    scaled = "outputs.mean" in tensors
    return HeadSpec(
        shapes=shapes, num_classes=facts["num_classes"], task=facts["task"], combine=facts["combine"],
        statistics=statistics, target_statistics=(tensors["outputs.mean"], tensors["outputs.deviation"]) if scaled else None,
        constants={name: tensors[f"constants.{name}"] for name in facts["constants"]},
    )  # fmt: skip
