"""Models without values, on the device "meta": they have shapes and can be described, and cost neither memory nor draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

VALUED = frozenset(
    {"uniform_", "normal_", "erfinv_", "mul_", "add_", "sub_", "div_", "clamp_", "fill_", "zero_", "copy_"}
)
"""Methods that change the values of a tensor and nothing else of it: what initialisations are made of."""


@contextmanager
def without_values() -> Iterator[None]:
    """Build modules on the device "meta", and pass over what would draw their values: that takes most of the time."""
    with torch.device("meta"), _Unvalued():
        yield


class _Unvalued(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        changed = next(iter((*args, *named.values())), None)
        if getattr(func, "__name__", "") in VALUED and isinstance(changed, torch.Tensor) and changed.is_meta:
            return changed
        return func(*args, **named)
