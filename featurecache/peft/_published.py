"""Values in the names of the papers' own code: from them into a method, and from a method to them.

A family of names is a file `_published_<family>.py` of this room with `ours(state, kept) -> dict` (a published state by the
names it has in the module of which the kept names are given) and, where there is one, the way back, `theirs(values) -> dict`.
Names are those of
the image side, without what stands before them in a CLIP model.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from featurecache.errors import RunError, UnknownNameError, WeightsError
from featurecache.peft import Adapted
from featurecache.registry import nearest, plain


def families() -> list[str]:
    """Return the names of the families."""
    found = Path(__file__).parent.glob("_published_*.py")
    return sorted(path.stem.removeprefix("_published_") for path in found)


def set_published(adapted: Adapted, family: str, state: Mapping[str, Tensor]) -> None:
    """Set what a method trains from values in the names of a paper's code.

    Raises:
        UnknownNameError: there is no such family.
        RunError: names that are missing, shapes that differ, or frozen values that are of another backbone.
    """
    own, prefix, room = adapted.module.state_dict(), _prefix(adapted), _room(family)
    kept = {name.removeprefix(prefix): name for name in adapted.kept}
    found = {kept[name]: value for name, value in room.ours(state, list(kept)).items() if name in kept}
    _check_complete(family, found, {name: tuple(own[name].shape) for name in adapted.kept})
    frozen = {name: value for name, value in state.items() if prefix + name in own.keys() - kept.values()}
    _check_backbone(own, prefix, {name: v for name, v in frozen.items() if not name.startswith("head.")})
    adapted.load(found)


def published(adapted: Adapted, family: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values, by the names of this module, in those of a paper's code.

    Raises:
        UnknownNameError: there is no such family.
        RunError: its names are only read.
    """
    prefix, room = _prefix(adapted), _room(family)
    if not hasattr(room, "theirs"):
        raise RunError(f"the published names of {family} are only read. Those of peft are written too.")
    found: dict[str, Tensor] = room.theirs({n.removeprefix(prefix): value for n, value in values.items()})
    return found


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: .safetensors, .npz, or a state dict that torch saved.

    Raises:
        WeightsError: there is no such file, or it is none of these; code in it is never run.
    """
    if not path.exists():
        raise WeightsError(f"there is no file {path}. Name the checkpoint that the paper's code saved.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix == ".npz":
            with np.load(path) as file:
                return {name: torch.from_numpy(file[name]) for name in file.files}
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, ValueError, RuntimeError, EOFError, ImportError, KeyError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is no checkpoint of tensors ({why}). Save its state dict alone.") from error
    except Exception as error:  # torch refuses code in pickles with an error of pickle's own
        raise WeightsError(f"{path} holds more than tensors, which is not read. Save its state dict alone.") from error
    return _tensors(found, path)


def _tensors(found: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{path} holds no state dict. Save the state dict of the model alone.")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _room(family: str) -> ModuleType:
    if plain(family) not in families():
        raise UnknownNameError(
            f"there are no published names called {family!r}.{nearest(family, families())} Known: {', '.join(families())}."
        )
    return importlib.import_module(f"featurecache.peft._published_{plain(family)}")


def _prefix(adapted: Adapted) -> str:
    """Return what stands before the names of the image side here: a CLIP model has two sides, the papers' code one."""
    names = [name for name in adapted.module.state_dict() if name.startswith(("visual.trunk.", "visual."))]
    if not names:
        return ""
    return "visual.trunk." if names[0].startswith("visual.trunk.") else "visual."


def _check_complete(family: str, found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [
        f"{name} is {tuple(value.shape)}, but {wanted[name]} is wanted"
        for name, value in found.items() if tuple(value.shape) != wanted[name]
    ]  # fmt: skip
    if problems:
        shown = [*problems[:12], *([f"and {len(problems) - 12} more"] if len(problems) > 12 else [])]
        raise RunError(
            f"these values are not of this method with these options, in the names of {family}:\n  "
            + "\n  ".join(shown) + "\nGive the --peft and --peft-option that they were trained with."
        )  # fmt: skip


def _check_backbone(own: Mapping[str, Tensor], prefix: str, frozen: Mapping[str, Tensor]) -> None:
    """Refuse values whose frozen part, where the file brings it, is not this backbone."""
    other = [name for name, value in frozen.items() if not _near(value, own[prefix + name])]
    if other:
        raise RunError(
            f"these values were trained in another backbone: {len(other)} of its {len(frozen)} frozen tensors differ from "
            f"this one, the first being {other[0]}. Give the --backbone and --weights that they were trained in."
        )


def _near(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and torch.allclose(theirs.to(ours), ours, rtol=1e-3, atol=1e-5)
