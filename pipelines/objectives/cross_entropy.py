"""The likelihood of the labels alone: cross-entropy, binary cross-entropy per label, or squared error, by task."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.features import FeatureBatch, Task
from pipelines.objectives import Loss


class CrossEntropy(nn.Module):
    """Mean negative log-likelihood of the targets, classes weighted by `class_weights` (C,) where given.

    Weights are taken as they are, so that parts of a batch add up to the batch; their mean over the rows should be one.
    """

    class_weights: Tensor | None

    def __init__(self, task: Task, label_smoothing: float, class_weights: Tensor | None) -> None:
        super().__init__()
        self.task, self.label_smoothing = task, label_smoothing
        self.register_buffer("class_weights", class_weights)

    def forward(self, outputs: Mapping[str, Tensor], batch: FeatureBatch) -> Loss:
        """(B, C) logits and the batch's targets -> the loss."""
        logits, targets = outputs["logits"], batch.targets
        if self.task == "classification":
            weight: Tensor | None = self.class_weights
            smoothing = self.label_smoothing
            total = F.cross_entropy(logits, targets, weight=weight, label_smoothing=smoothing, reduction="sum")
            loss = total / len(targets)
        elif self.task == "multilabel":
            loss = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
        else:
            loss = F.mse_loss(logits, targets.to(logits.dtype))
        return Loss(loss, {})


def build(task: Task, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> CrossEntropy:
    """Return the objective of plain training for a task."""
    return CrossEntropy(task, label_smoothing, class_weights)
