"""The likelihood of the labels alone: cross-entropy, binary cross-entropy per label, or squared error, by task."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from featurecache.features import FeatureBatch, Task
from pipelines.objectives import Loss


class CrossEntropy(nn.Module):
    """Mean negative log-likelihood of the targets, classes weighted by `class_weights` (C,) where given.

    Errors of a regression are measured in `target_scale`, (K,) units of each column, so that the loss, and with it every step,
    does not depend on whether targets are ages or prices.

    Weights are taken as they are, so that parts of a batch add up to the batch; their mean over the rows should be one.
    """

    class_weights: Tensor | None
    target_scale: Tensor | None

    def __init__(
        self, task: Task, label_smoothing: float, class_weights: Tensor | None, target_scale: Tensor | None
    ) -> None:
        super().__init__()
        self.task, self.label_smoothing = task, label_smoothing
        self.register_buffer("class_weights", class_weights)
        self.register_buffer("target_scale", target_scale)

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
            errors = logits - targets.to(logits.dtype)
            scaled: Tensor = errors if self.target_scale is None else errors / self.target_scale
            loss = scaled.square().mean()
        return Loss(loss, {})


def build(
    task: Task,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    target_scale: Tensor | None = None,
) -> CrossEntropy:
    """Return the objective of plain training for a task; see `CrossEntropy`."""
    return CrossEntropy(task, label_smoothing, class_weights, target_scale)
