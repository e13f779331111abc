"""What was trained in a backbone, alone on disk: safetensors that say which method, which options, which backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from featurecache.errors import FeatureCacheError, RunError
from featurecache.features import differences
from featurecache.files import write_atomic
from featurecache.peft import Adapted, adapt, of_the_backbone


def save(path: Path, adapted: Adapted, name: str, options: Mapping[str, Any], backbone: Mapping[str, Any]) -> None:
    """Write `Adapted.state` with what it belongs to."""
    facts = {"method": name, "options": dict(options), "backbone": dict(backbone)}
    tensors = {key: value.cpu().contiguous() for key, value in adapted.state().items()}
    write_atomic(path, safetensors.torch.save(tensors, {"featurecache": json.dumps(facts)}))


def load(path: Path, module: nn.Module, backbone: Mapping[str, Any]) -> Adapted:
    """Put the method of the file into the module, and its values into the method.

    Raises:
        RunError: the file is damaged, or its values are of another backbone; names what differs.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["featurecache"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        found = differences(of_the_backbone(backbone), of_the_backbone(facts["backbone"]))
        if found:
            lines = "\n".join(f"  {name}: {theirs!r} there, {ours!r} here" for name, ours, theirs in found)
            raise RunError(f"{path} was trained in another backbone:\n{lines}")
        with torch.random.fork_rng(devices=[]):  # the start that is drawn here is overwritten
            adapted = adapt(facts["method"], module, facts["options"])
        adapted.load(state)
    except FeatureCacheError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise RunError(f"{path} cannot be read ({why}). Train the run again into a new --out.") from error
    return adapted
