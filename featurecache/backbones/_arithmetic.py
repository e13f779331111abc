"""The arithmetic of a forward pass: what the identity records is what happens, whatever the process has chosen for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from featurecache.errors import ConfigError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
TF32 = "tf32"
"""float32 whose products are rounded to 10 bits of mantissa; a GPU's own."""


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse an arithmetic that the device does not have.

    Raises:
        ConfigError: tf32 on anything but a CUDA GPU.
    """
    if precision == TF32 and device.type != "cuda":
        raise ConfigError([f"precision tf32 exists on CUDA GPUs only, and the device is {device}: give fp32"])


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in `precision`: TF32 is off unless it is that; what the process had set is set again afterwards."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision == TF32
        wanted = precision in AUTOCAST
        if wanted or torch.is_autocast_enabled(device.type):
            with torch.autocast(device.type, AUTOCAST.get(precision), enabled=wanted):
                yield
        else:  # a region that changes nothing would be one more thing for tracers to take apart
            yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed
