"""Random features that tell something of their targets, in the batches that a head reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from featurecache.features import FeatureBatch, Task
from heads import HeadSpec

TASKS: tuple[Task, ...] = ("classification", "multilabel", "regression")
Shapes = Mapping[str, int | tuple[int, ...]]
"""Array name -> D, or the whole shape of a row."""

ONE: Shapes = {"layers/cls/05": 8}
LAYERS: dict[str, int] = {
    "layers/cls/00": 6, "layers/mean/00": 6, "layers/cls/03": 10, "layers/mean/03": 10, "layers/cls/05": 8,
}  # fmt: skip
"""Unequal widths, and two kinds of token."""
TOWER: Shapes = {f"layers/cls/{index:02d}": 8 for index in range(3)}
"""Equal widths, as the layers of a CLIP tower."""
READ: Mapping[str, Shapes] = {
    "last": LAYERS, "all": LAYERS, "tokens": {"layers/all/05": (7, 8)}, "projected": {"projected": 16},
}  # fmt: skip
"""What a head is given, by what it consumes."""
READ_BESIDE_TEXTS: Mapping[str, Shapes] = {"last": ONE, "all": TOWER}
"""The same, of a head that reads arrays of the classes too: one tower, whose layers CLIP's projection takes."""
CLASSES = 4
CONSTANTS: Mapping[str, tuple[int, ...]] = {
    "text/embedding": (CLASSES, 2, 16), "text/eot": (4, CLASSES, 2, 6),
    "text/image_projection": (1, 8, 16), "text/projection": (1, 6, 16), "text/logit_scale": (1, 1, 1),
}  # fmt: skip
"""Arrays of the classes, two templates each, and of the model that made them."""


def targets_of(task: Task, hidden: Tensor) -> Tensor:
    """Return what a task asks of (N, C) hidden values."""
    if task == "classification":
        return hidden.argmax(-1)
    return (hidden > 0).to(torch.uint8) if task == "multilabel" else hidden.float()


def batches(
    task: Task = "classification",
    widths: Shapes = ONE,
    *,
    rows: int = 90,
    classes: int = CLASSES,
    size: int = 32,
    noise: float = 0.5,
    seed: int = 0,
) -> list[FeatureBatch]:
    """Return `rows` rows in batches of `size`; features are noisy maps of the hidden values that make the targets."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, classes, generator=draw)
    arrays = {
        name: torch.tensordot(hidden, torch.randn(classes, *shape, generator=draw), dims=1)
        + noise * torch.randn(rows, *shape, generator=draw)
        + 3
        for name, shape in shapes_of(widths).items()
    }
    targets = targets_of(task, hidden)
    return [
        FeatureBatch(
            np.arange(start, min(start + size, rows)),
            [str(row) for row in range(start, min(start + size, rows))],
            targets[start : start + size],
            {name: values[start : start + size] for name, values in arrays.items()},
        )
        for start in range(0, rows, size)
    ]


def shapes_of(widths: Shapes) -> dict[str, tuple[int, ...]]:
    """Return array name -> shape of a row."""
    return {name: (shape,) if isinstance(shape, int) else shape for name, shape in widths.items()}


def joined(parts: Sequence[FeatureBatch]) -> FeatureBatch:
    """Return the batches as one."""
    arrays = {name: torch.cat([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    rows = np.concatenate([part.rows for part in parts])
    return FeatureBatch(rows, [str(row) for row in rows], torch.cat([part.targets for part in parts]), arrays)


def statistics_of(parts: Sequence[FeatureBatch]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return array -> (mean, standard deviation) over the rows."""
    return {name: (v.mean(0), v.std(0, correction=0)) for name, v in joined(parts).arrays.items()}


def spec_of(
    task: Task = "classification",
    widths: Shapes = ONE,
    *,
    classes: int = CLASSES,
    standardised_by: Sequence[FeatureBatch] = (),
    constants: Sequence[str] = (),
) -> HeadSpec:
    """Return the spec of a head that reads arrays of the given widths, and random arrays of the classes."""
    draw = torch.Generator().manual_seed(1)
    return HeadSpec(
        shapes=shapes_of(widths),
        num_classes=classes,
        task=task,
        statistics=statistics_of(standardised_by) if standardised_by else {},
        constants={name: torch.randn(CONSTANTS[name], generator=draw) for name in constants},
    )
