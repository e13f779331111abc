"""Features in the store's dtype: never another dtype by itself, never an infinity in the store."""

from __future__ import annotations

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


def stored_form(
    outputs: Sequence[Mapping[str, Tensor]], arrays: Sequence[ArraySpec], ids: Sequence[str], skipped: Mapping[int, str]
) -> dict[str, npt.NDArray[Any]]:
    """Return (B, V, ...) arrays as the store keeps them, from the outputs of V views; rows of skipped samples are zero.

    Raises:
        FeatureValueError: a value is NaN, infinite, or too far from what the store's dtype can hold.
    """
    return {spec.name: np.stack([_cast(view[spec.name], spec, ids, skipped) for view in outputs], 1) for spec in arrays}


def _cast(given: Tensor, spec: ArraySpec, ids: Sequence[str], skipped: Mapping[int, str]) -> npt.NDArray[Any]:
    values = given.float()
    if skipped:
        values = values.clone()
        values[list(skipped)] = 0
    cast = values.to(TORCH_DTYPES[spec.dtype])
    _check_cast(values, cast, spec, ids)
    bits = cast.view(torch.uint16) if spec.dtype == "bfloat16" else cast
    return bits.cpu().numpy()


def _check_cast(values: Tensor, cast: Tensor, spec: ArraySpec, ids: Sequence[str]) -> None:
    if not torch.isfinite(cast).all():
        flat = cast.flatten(1)
        place = int((~torch.isfinite(flat)).any(1).nonzero()[0])
        seen = values.flatten(1)[place]
        if not torch.isfinite(seen).all():
            raise FeatureValueError(
                f"the backbone gave NaN or infinity in {spec.name} for {ids[place]!r}. Look at that image, "
                "or compute with --precision fp32."
            )
        raise FeatureValueError(
            f"{spec.name} of {ids[place]!r} reaches {float(seen.abs().max()):.3g}, which {spec.dtype} cannot hold. "
            "Give --dtype bfloat16 or --dtype float32."
        )
    if spec.dtype != "float32":
        size = values.norm()
        error = float((values - cast.float()).norm() / size) if size > 0 else 0.0
        if error > WORST_ERROR[spec.dtype]:
            raise FeatureValueError(
                f"{spec.name} loses {error:.1e} of its size as {spec.dtype} in the batch from {ids[0]!r} "
                f"(at most {WORST_ERROR[spec.dtype]:.0e} is accepted). Give --dtype float32."
            )


def as_numbers(stored: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return stored values as numbers NumPy knows: bfloat16, kept as uint16, becomes float32; others stay."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else stored


def as_tensor(stored: npt.NDArray[Any], dtype: str) -> Tensor:
    """Return stored values as a tensor of their logical dtype, sharing memory."""
    tensor = torch.from_numpy(stored.view(stored.dtype.newbyteorder("=")))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
