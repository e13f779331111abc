"""Where models run: devices and arithmetic, never a silent fall-back; and what the surroundings were."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache
from typing import Any, Literal

import torch

from featurecache.errors import DeviceError

RECORDED = (
    "featurecache",
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "numpy",
    "zarr",
    "h5py",
    "scikit-learn",
    "Pillow",
    "simplejpeg",
)


def resolve_device(name: str) -> torch.device:
    """Return the device called cpu, cuda, cuda:N, mps, or auto (a GPU where there is one).

    Raises:
        DeviceError: the device is not there, or no such device can be.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"there is no device called {name!r}. Known: cpu, cuda, cuda:N, mps, auto.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"--device {name} was asked for, but torch sees no CUDA GPU. Give --device cpu, or auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"--device {name} was asked for, but there are {torch.cuda.device_count()} GPUs, from cuda:0."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"--device {name} was asked for, but torch sees no Apple GPU. Give --device cpu, or auto.")
    return device


def default_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """Return bf16 on a GPU that computes in it, else fp32."""
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def environment() -> dict[str, Any]:
    """Return versions, machine and threads: recorded with every run and store, never compared."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(), "machine": platform.platform(), "gpu": gpu,
        "threads": torch.get_num_threads(), "versions": dict(_versions()),
    }  # fmt: skip


@cache
def _versions() -> dict[str, str]:
    """Return the versions of what is installed; a process imports a library once."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["torch"] = torch.__version__  # with the build, which the package's metadata leaves out
    return found
