"""Features in the store's dtype: never another dtype by itself, never an infinity in the store."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.errors import FeatureValueError
from featurecache.features import ArraySpec

TORCH_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
WORST_ERROR = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-6}
"""Largest relative error (Frobenius norm of a batch) that a layer may suffer from the store's dtype."""


class Rounding:
    """What the store's dtype has taken from each array so far: Frobenius norms of the difference, by those of the values."""

    def __init__(self) -> None:
        self.rows = 0
        """Rows seen so far, skipped ones too."""
        self._squares: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def add(self, array: str, error: float, size: float) -> None:
        """Count one batch of one view: the norm of the difference, and that of the values."""
        lost, whole = self._squares[array]
        self._squares[array] = (lost + error**2, whole + size**2)

    def relative(self) -> dict[str, float]:
        """Return array -> relative error; 0 where the dtype holds every value, as float32 does."""
        return {name: math.sqrt(lost / whole) if whole else 0.0 for name, (lost, whole) in list(self._squares.items())}


def stored_form(
    outputs: Sequence[Mapping[str, Tensor]],
    arrays: Sequence[ArraySpec],
    ids: Sequence[str],
    skipped: Mapping[int, str],
    rounding: Rounding | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Return (B, V, ...) arrays as the store keeps them, from the outputs of V views; rows of skipped samples are zero.

    An array may be in the outputs of some views only.

    `rounding` takes note of what the dtype costs.

    Raises:
        FeatureValueError: a value is NaN, infinite, or too far from what the store's dtype can hold.
    """
    seen = Rounding() if rounding is None else rounding
    cast = {
        spec.name: [_cast(view[spec.name], spec, ids, skipped, seen) for view in outputs if spec.name in view]
        for spec in arrays
    }
    seen.rows += len(ids)
    # a single view is not copied once more: every token of every layer is a megabyte a row
    return {name: np.stack(views, 1) if len(views) > 1 else views[0][:, None] for name, views in cast.items()}


def _cast(
    given: Tensor, spec: ArraySpec, ids: Sequence[str], skipped: Mapping[int, str], rounding: Rounding
) -> npt.NDArray[Any]:
    values = given.float()
    if skipped:
        values = values.clone()
        values[list(skipped)] = 0
    cast = values.to(TORCH_DTYPES[spec.dtype])
    rounding.add(spec.name, *_checked_error(values, cast, spec, ids))
    bits = cast.view(torch.uint16) if spec.dtype == "bfloat16" else cast
    return bits.cpu().numpy()


def _checked_error(values: Tensor, cast: Tensor, spec: ArraySpec, ids: Sequence[str]) -> tuple[float, float]:
    """Return the norm of what the dtype takes from a batch, and that of the batch.

    One pass over the difference says that every value is finite: a single one that is not, makes the norm so too.
    """
    error = float((cast.float() if cast is not values else cast.clone()).sub_(values).norm())
    if not math.isfinite(error):
        _refuse_infinite(values, cast, spec, ids)
        values, cast = values.double(), cast.double()  # only the squares are too large
        error = float((values - cast).norm())
    if spec.dtype == "float32":
        return 0.0, 0.0
    size = float(values.norm())
    if error > WORST_ERROR[spec.dtype] * size:
        raise FeatureValueError(
            f"{spec.name} loses {error / size:.1e} of its size as {spec.dtype} in the batch from {ids[0]!r} "
            f"(at most {WORST_ERROR[spec.dtype]:.0e} is accepted). Give --dtype float32."
        )
    return error, size


def _refuse_infinite(values: Tensor, cast: Tensor, spec: ArraySpec, ids: Sequence[str]) -> None:
    """Raise for the first sample with a value that is not finite; do nothing where there is none."""
    found = (~torch.isfinite(cast.flatten(1))).any(1).nonzero()
    if not len(found):
        return
    place = int(found[0])
    seen = values.flatten(1)[place]
    if not torch.isfinite(seen).all():
        raise FeatureValueError(
            f"the backbone gave NaN or infinity in {spec.name} for {ids[place]!r}. "
            f"Look at that {'class name' if spec.name.startswith('text/') else 'image'}, or compute with --precision fp32."
        )
    raise FeatureValueError(
        f"{spec.name} of {ids[place]!r} reaches {float(seen.abs().max()):.3g}, which {spec.dtype} cannot hold. "
        "Give --dtype bfloat16 or --dtype float32."
    )


def as_tensor(stored: npt.NDArray[Any], dtype: str) -> Tensor:
    """Return stored values as a tensor of their logical dtype, sharing memory."""
    tensor = torch.from_numpy(stored.view(stored.dtype.newbyteorder("=")))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
