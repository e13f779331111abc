"""The likelihood of the labels by hand, task by task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featurecache.features import FeatureBatch
from pipelines.objectives import OBJECTIVES
from pipelines.objectives.cross_entropy import build

LOGITS = torch.tensor([[1.0, -0.5, 0.2], [0.3, 2.0, -1.0], [0.0, 0.1, 0.2], [-2.0, 0.0, 1.0]])
CLASSES = torch.tensor([0, 2, 1, 0])


def loss(objective, targets: torch.Tensor) -> float:
    return float(objective({"logits": LOGITS}, FeatureBatch(np.arange(4), list("abcd"), targets, {})).total)


def log_softmax() -> np.ndarray:
    values = LOGITS.double().numpy()
    return values - np.log(np.exp(values).sum(1, keepdims=True))


def test_classes_cost_minus_their_log_probability():
    assert loss(build("classification"), CLASSES) == pytest.approx(-log_softmax()[range(4), CLASSES].mean())


def test_weighted_classes_cost_their_weight():
    weights = torch.tensor([0.5, 1.0, 4.0])

    by_hand = -(weights[CLASSES].numpy() * log_softmax()[range(4), CLASSES]).mean()

    assert loss(build("classification", class_weights=weights), CLASSES) == pytest.approx(by_hand)


def test_parts_of_a_batch_add_up_to_it_with_weights_and_smoothing():
    objective = build("classification", class_weights=torch.tensor([0.5, 1.0, 4.0]), label_smoothing=0.2)

    def of(rows: slice) -> float:
        part = FeatureBatch(np.arange(4)[rows], list("abcd")[rows], CLASSES[rows], {})
        return float(objective({"logits": LOGITS[rows]}, part).total)

    assert (of(slice(0, 1)) + 3 * of(slice(1, 4))) / 4 == pytest.approx(of(slice(0, 4)))


def test_smoothing_spreads_a_share_of_the_label_over_all_classes():
    wanted = 0.7 * np.eye(3)[CLASSES] + 0.3 / 3

    by_hand = -(wanted * log_softmax()).sum(1).mean()

    assert loss(build("classification", label_smoothing=0.3), CLASSES) == pytest.approx(by_hand)


def test_labels_cost_the_mean_over_rows_and_labels():
    targets = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.uint8)
    chance = 1 / (1 + np.exp(-LOGITS.double().numpy()))

    by_hand = -np.where(targets.numpy(), np.log(chance), np.log(1 - chance)).mean()

    assert loss(build("multilabel"), targets) == pytest.approx(by_hand)


def test_values_cost_the_mean_square_of_the_error():
    targets = torch.tensor([[1.0, 2.0, 3.0]] * 4)

    assert loss(build("regression"), targets) == pytest.approx(((LOGITS - targets) ** 2).mean().item())


def test_it_is_listed():
    assert "cross_entropy" in OBJECTIVES.names()
