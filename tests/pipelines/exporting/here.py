"""The proof of an export without a fresh process, where a test is not about that: its imports take seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.datasets import ImageDataset
from pipelines.exporting import standalone


def said_here(folder: Path, dataset: ImageDataset, *, onnx: bool) -> npt.NDArray[np.float64]:
    """Return what the folder's own code says in this process; that it also runs alone, in a fresh one, test_export.py shows."""
    model = standalone.Model.load(folder, onnx=onnx)
    return model.logits([dataset.read(row) for row in range(len(dataset))]).astype("float64")
