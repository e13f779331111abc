"""Reading weights files: safetensors, or pickles that hold nothing but tensors."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from featurecache.errors import WeightsError


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
