"""A transform of timm's or torchvision's in words that an export can follow with Pillow and NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from featurecache.backbones import Backbone
from featurecache.errors import BackboneError
from featurecache.seeding import generator
from pipelines.exporting.standalone import prepared

if TYPE_CHECKING:
    from torchvision.transforms import CenterCrop, Normalize, Resize

PROBES = ((48, 40), (40, 97), (301, 200), (224, 224), (20, 20))
"""(height, width) of pictures that the words must prepare to the very bits of the transform."""

Step = dict[str, Any]


def described(backbone: Backbone) -> list[Step]:
    """Return the steps of a backbone's transform, which give the same bits.

    Raises:
        BackboneError: a step is not known, or the words give something else.
    """
    from torchvision.transforms import Compose

    transform = backbone.transform
    steps = transform.transforms if isinstance(transform, Compose) else [transform]
    found = [word for step in steps if (word := _described(step, backbone.name)) is not None]
    for height, width in PROBES:
        pixels = generator("probe", height, width).integers(0, 256, (height, width, 3)).astype(np.uint8)
        picture = Image.fromarray(pixels)
        given = prepared(picture, found)
        if not isinstance(given, np.ndarray) or not torch.equal(torch.from_numpy(given), transform(picture)):
            raise BackboneError(
                f"the transform of {backbone.name} cannot be exported: in words its steps {found} give other values "
                f"for a picture of {width} x {height} pixels. `featurecache predict` runs it."
            )
    return found


def _described(step: Any, name: str) -> Step | None:
    from torchvision.transforms import ToTensor

    kind = type(step).__name__
    if kind in DESCRIBE and type(step).__module__.split(".")[0] in ("torchvision", "timm"):
        return DESCRIBE[kind](step)
    if isinstance(step, ToTensor):
        return None  # part of "normalise"
    raise BackboneError(
        f"the transform of {name} has the step {kind}, which cannot be described for use without it. "
        f"Known: {', '.join(DESCRIBE)}. `featurecache predict` runs it."
    )


def _resize(step: Resize) -> Step:
    size = step.size
    if isinstance(size, int) or len(size) == 1:
        return {
            "step": "resize", "fit": "shorter", "size": size if isinstance(size, int) else size[0],
            "interpolation": step.interpolation.value,
        }  # fmt: skip
    return {"step": "resize", "fit": "exact", "size": list(size), "interpolation": step.interpolation.value}


def _resize_keep_ratio(step: Any) -> Step:
    return {
        "step": "resize", "fit": "ratio", "size": list(step.size), "longest": step.longest,
        "interpolation": step.interpolation.value,
    }  # fmt: skip


def _crop(step: CenterCrop | Any) -> Step:
    fill = getattr(step, "fill", 0)
    return {"step": "center_crop", "size": list(step.size), "fill": [fill] * 3 if isinstance(fill, int) else list(fill)}


def _normalise(step: Normalize) -> Step:
    mean, std = (torch.as_tensor(values, dtype=torch.float32).tolist() for values in (step.mean, step.std))
    return {"step": "normalise", "mean": mean, "std": std}


def _nothing(step: Any) -> None:
    return None


DESCRIBE: Mapping[str, Callable[[Any], Step | None]] = {
    "Resize": _resize, "ResizeKeepRatio": _resize_keep_ratio, "CenterCrop": _crop, "CenterCropOrPad": _crop,
    "ToTensor": _nothing, "MaybeToTensor": _nothing, "Normalize": _normalise,
}  # fmt: skip
"""Class of a step -> its words; a tensor is made by "normalise"."""
