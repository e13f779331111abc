"""Reading weights files: safetensors, or pickles that hold nothing but tensors."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featurecache.errors import ConfigError, WeightsError

LISTED = 20
"""Keys of a state dict that a message lists before it counts the rest."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name.

    Raises:
        WeightsError: it is missing, damaged, unsafe to read, or no state dict.
    """
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}. Give --weights FILE, or --weights random:SEED.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} cannot be read as safetensors: {error}") from None
    return _unpickled(path)


def _unpickled(path: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(path) and any(n.endswith("constants.pkl") for n in zipfile.ZipFile(path).namelist()):
        raise WeightsError(
            f"{path} is a TorchScript archive, which holds code. Save its state_dict() as safetensors instead."
        )
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise WeightsError(
            f"{path} was not read: it is damaged, or holds more than tensors ({reason}). Save it as safetensors."
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        raise WeightsError(f"{path} holds no state dict (names with tensors).")
    return value


def seed_of(weights: str | None) -> int | None:
    """Return SEED of "random:SEED", or None for a file.

    Raises:
        ConfigError: the seed is no number.
    """
    kind, _, seed = (weights or "").partition(":")
    if kind != "random":
        return None
    if not seed.isdigit():
        raise ConfigError([f"random weights need a seed, such as random:0; got {weights!r}"])
    return int(seed)


def key_list(keys: Sequence[str]) -> str:
    """Return "N: a, b, c and M more" for a message."""
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return f"{len(keys)}: {', '.join(keys[:LISTED])}{more}"


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Load a state dict whose names and shapes must be exactly those of `module`.

    Raises:
        WeightsError: they are not; lists missing, unexpected and misshapen keys.
    """
    own = module.state_dict()
    sizes = [
        f"{key} {list(state[key].shape)}, not {list(own[key].shape)}"
        for key in own if key in state and state[key].shape != own[key].shape
    ]  # fmt: skip
    parts = differing(sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys()), sizes)
    if parts:
        raise WeightsError(f"{path} does not hold the weights of {name}:\n  {parts}\nGive a file of this architecture.")
    module.load_state_dict(dict(state))


def differing(missing: Sequence[str], unexpected: Sequence[str], sizes: Sequence[str]) -> str:
    """Return one line per way in which the keys of a state dict are wrong; empty where they are right."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", sizes))
    return "\n  ".join(f"{kind} {key_list(keys)}" for kind, keys in kinds if keys)
