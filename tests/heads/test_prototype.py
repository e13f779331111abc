"""Means against those that numpy takes, answers against scikit-learn's nearest centroid, the factor against refitting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestCentroid

from featurecache.errors import ConfigError
from heads.prototype import build
from tests.heads.samples import CLASSES, LAYERS, batches, joined, spec_of

METRICS = ("euclid", "cosine")


def solved(parts: list, metric: str) -> tuple[torch.nn.Module, np.ndarray, np.ndarray]:
    head = build(spec_of(widths=LAYERS), metric=metric, whiten=False)
    head.solve(parts)
    x = torch.cat(list(joined(parts).arrays.values()), 1).double().numpy()
    return head, x, joined(parts).targets.numpy()


def closeness(x: np.ndarray, means: np.ndarray, metric: str) -> np.ndarray:
    """Return (B, C) minus squared distances, or cosines."""
    if metric == "euclid":
        return -np.square(x[:, None] - means).sum(-1)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T


def means_of(x: np.ndarray, y: np.ndarray, metric: str) -> np.ndarray:
    rows = x if metric == "euclid" else x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.stack([rows[y == c].mean(0) for c in range(CLASSES)])


def test_the_nearest_mean_is_scikit_learns_nearest_centroid():
    parts = batches(widths=LAYERS, rows=200, noise=4.0)

    head, x, y = solved(parts, "euclid")

    np.testing.assert_array_equal(head(joined(parts).arrays).argmax(1).numpy(), NearestCentroid().fit(x, y).predict(x))


@pytest.mark.parametrize("metric", METRICS)
def test_logits_are_factors_of_the_closeness_up_to_a_term_of_the_row(metric):
    parts = batches(widths=LAYERS, noise=4.0)

    head, x, y = solved(parts, metric)

    expected = head.solve(parts)["factor"] * closeness(x, means_of(x, y, metric), metric)
    said = head(joined(parts).arrays).double().numpy()
    np.testing.assert_allclose(
        said - said.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("metric", METRICS)
def test_the_factor_is_the_likeliest_of_rows_left_out_of_their_mean(metric):
    parts = batches(widths=LAYERS, rows=60, noise=4.0)

    head, x, y = solved(parts, metric)

    left_out = []
    for row in range(len(x)):
        rest = np.arange(len(x)) != row
        left_out.append(closeness(x[row : row + 1], means_of(x[rest], y[rest], metric), metric)[0])
    values, targets = torch.from_numpy(np.array(left_out)), torch.from_numpy(y)

    def loss(factor: float) -> float:
        return float(F.cross_entropy(factor * values, targets))

    factor, step = head.solve(parts)["factor"], 10 ** (1 / 10)
    assert loss(factor) <= min(loss(factor * step), loss(factor / step))


@pytest.mark.parametrize("metric", METRICS)
def test_a_class_without_rows_is_never_the_answer_and_one_of_a_single_row_has_a_mean(metric):
    parts = batches(widths=LAYERS, rows=30, size=30)
    parts[0].targets[parts[0].targets == 1] = 0
    parts[0].targets[3] = 2
    parts[0].targets[parts[0].targets == 3] = 0
    parts[0].targets[5] = 3

    head = build(spec_of(widths=LAYERS), metric=metric, whiten=False)
    head.solve(parts)

    said = head(parts[0].arrays)
    assert torch.isfinite(said).all()
    assert not (said.argmax(1) == 1).any()
    assert said[5].argmax() == 3


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_tasks_without_classes_are_refused_by_name(task):
    with pytest.raises(ConfigError, match=f"prototype cannot do {task}: only classes have means"):
        build(spec_of(task))


def test_no_rows_are_refused():
    with pytest.raises(ConfigError, match="prototype needs training rows, got none"):
        build(spec_of()).solve([])
