"""What is told of a student and its teachers: whose dimensions count, and how far their kernels are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from featurecache.sources import FeatureSource
from featurecache.sources.joined import teacher_array
from featurecache.sources.teachers import Teacher
from pipelines.objectives import Dimensions
from pipelines.objectives.aft import build as kernels_of

DIGITS = 5
"""Decimal places of the scales in the record."""
ROWS = 256
"""Rows of validation whose kernels are compared."""


def of_teachers(teachers: Sequence[Teacher], scales: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Return what the record says of each teacher, with the scale of each of its dimensions where these are learnt."""
    found = []
    for number, teacher in enumerate(teachers):
        header = teacher.store.header
        entry: dict[str, Any] = {
            "store": str(teacher.store.path), "backbone": header.backbone.get("name"), "array": teacher.array,
            "width": teacher.width, "identity": dict(header.backbone), "data": dict(header.dataset),
        }  # fmt: skip
        if scales:
            values = scales[number].double().cpu()
            entry |= {
                "scales_mean": values.mean().item(), "scales_std": values.std().item() if len(values) > 1 else 0.0,
                "scales": [round(value, DIGITS) for value in values.tolist()],
            }  # fmt: skip
        found.append(entry)
    return found


@torch.no_grad()
def kernel_distances(source: FeatureSource, rows: int, teachers: Sequence[Teacher], device: str) -> list[float]:
    """Return how far the student's kernel is from that of each teacher, unscaled, over the first rows of a joined source."""
    found: dict[str, list[Tensor]] = {}
    count = 0
    for batch in source.walk(64):
        for name, values in batch.arrays.items():
            found.setdefault(name, []).append(values.float().to(device))
        count += len(batch)
        if count >= rows:
            break
    whole = {name: torch.cat(parts)[:rows] for name, parts in found.items()}
    if count < 2:
        return []
    features, distances = whole["embedding"], []
    for number, teacher in enumerate(teachers):
        alike = kernels_of(Dimensions(features.shape[1], (teacher.width,)), learn_scales=False).to(device)
        distances.append(alike.measure(features, [whole[teacher_array(number)]]).item())
    return distances
