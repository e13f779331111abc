"""Leave-one-out ridge against as many fits as there are rows."""

from __future__ import annotations

import numpy as np
import pytest

from heads.ridge import LAMBDAS
from tests.pipelines.scores.samples import clusters, score_of


def by_refitting(values, columns):
    """Best over lambda of 1 - PRESS / variance, each row predicted by a fit without it."""
    scaled = (values - values.mean(0)) / values.std(0)
    count = len(scaled)

    def error(penalty):
        total = 0.0
        for left in range(count):
            rest = np.arange(count) != left
            x, y = scaled[rest], columns[rest]
            centre, level = x.mean(0), y.mean(0)
            gram = (x - centre).T @ (x - centre) + penalty * count * np.eye(x.shape[1])
            weight = np.linalg.solve(gram, (x - centre).T @ (y - level))
            total += np.square(level + (scaled[left] - centre) @ weight - columns[left]).sum()
        return total / count / columns.shape[1]

    return 1 - min(map(error, LAMBDAS)) / columns.var(0).mean()


@pytest.mark.parametrize("width", [3, 40])
def test_classes_are_their_columns(width):
    values, labels = clusters(count=24, width=width, classes=3)

    assert score_of("ridge_loo", values, labels) == pytest.approx(by_refitting(values, np.eye(3)[labels]), rel=1e-8)


def test_columns_of_a_regression_count_alike_whatever_their_unit():
    values, labels = clusters(count=24, width=4)
    columns = np.stack([labels + values[:, 0], 1e4 * np.random.default_rng(4).normal(size=24)], 1).astype(np.float32)

    found = score_of("ridge_loo", values, columns, "regression")

    assert found == pytest.approx(by_refitting(values, columns / columns.std(0, dtype=np.float64)), rel=1e-6)
    assert found == pytest.approx(score_of("ridge_loo", values, columns * [100, 1], "regression"), rel=1e-6)


def test_labels_of_a_multilabel_task_are_columns_already():
    values, labels = clusters(count=24, width=4)
    columns = np.stack([labels > 1, labels % 2], 1).astype(np.uint8)

    found = score_of("ridge_loo", values, columns, "multilabel")

    assert found == pytest.approx(by_refitting(values, columns.astype(np.float64)), rel=1e-8)


def test_features_that_say_nothing_explain_nothing():
    values = np.random.default_rng(5).normal(size=(60, 5))
    labels = np.arange(60) % 3

    assert -0.1 < score_of("ridge_loo", values, labels) <= 0.05
