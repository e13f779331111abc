"""The net of the recorded trainings as a source: features that learn, joined with recorded rows of teachers, in fixed batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from featurecache.features import FeatureBatch
from featurecache.sources.joined import teacher_array
from tests.pipelines.one_body import OneBody


class FixedBatches(OneBody):
    """(nb, bs, ...) recorded inputs, teacher rows and classes; the features are tanh(W x + b)."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.x, self.told, self.y = (torch.from_numpy(arrays[name]) for name in ("x", "pretrained_features", "y"))
        self.widths = arrays["feat_dims"].tolist()
        self.body = nn.Linear(self.x.shape[-1], len(arrays["init_body_bias"]), dtype=torch.float64)
        with torch.no_grad():
            self.body.weight.copy_(torch.from_numpy(arrays["init_body_weight"]))
            self.body.bias.copy_(torch.from_numpy(arrays["init_body_bias"]))

    def __len__(self) -> int:
        return self.y.numel()

    def batches(self, batch_size: int, *, order: str, seed: int, start: int = 0) -> Iterator[FeatureBatch]:
        size = self.y.shape[1]
        assert batch_size == size and start % size == 0
        for number in range(start // size, len(self.y)):
            blocks = self.told[number].split(self.widths, dim=-1)
            arrays = {teacher_array(place): rows for place, rows in enumerate(blocks)}
            arrays["embedding"] = torch.tanh(self.body(self.x[number]))
            rows = np.arange(number * size, (number + 1) * size)
            yield FeatureBatch(rows, [""] * size, self.y[number], arrays)
