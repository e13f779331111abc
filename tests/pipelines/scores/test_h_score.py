"""H-score against its definition, computed row by row."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pipelines.scores.samples import clusters, score_of


def by_definition(values, labels):
    expected = np.stack([values[labels == label].mean(0) for label in labels])
    return np.trace(np.linalg.pinv(np.cov(values.T, ddof=0)) @ np.cov(expected.T, ddof=0))


@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_the_trace_of_the_definition(classes):
    values, labels = clusters(classes=classes)

    assert score_of("h_score", values, labels) == pytest.approx(by_definition(values, labels), rel=1e-9)


def test_no_invertible_affine_map_changes_it():
    values, labels = clusters()
    mapped = values @ np.random.default_rng(2).normal(size=(6, 6)) - 100

    assert score_of("h_score", mapped, labels) == pytest.approx(score_of("h_score", values, labels), rel=1e-8)


def test_directions_without_variance_are_dropped():
    values, labels = clusters()
    repeated = np.hstack([values, values[:, :2] + values[:, 2:4], np.ones((len(values), 1))])

    assert score_of("h_score", repeated, labels) == pytest.approx(score_of("h_score", values, labels), rel=1e-8)


def test_it_lies_between_none_and_one_less_than_the_classes():
    values, labels = clusters(count=20, width=40)

    assert score_of("h_score", values, labels) == pytest.approx(len(np.unique(labels)) - 1, rel=1e-6)
    assert score_of("h_score", np.zeros((20, 3)), labels) == 0


def test_a_mean_far_above_the_spread_costs_no_digits():
    values, labels = clusters()

    assert score_of("h_score", values + 1e6, labels) == pytest.approx(by_definition(values, labels), rel=1e-6)
