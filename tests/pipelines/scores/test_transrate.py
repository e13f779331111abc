"""TransRate against its definition, from eigenvalues of all rows at once."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pipelines.scores.samples import clusters, score_of


def rate(centred):
    """Half the sum of ln(1 + s^2 / (n eps)) over the singular values: another route to the determinant."""
    singular = np.linalg.svd(centred, compute_uv=False)
    return np.log1p(singular**2 / (len(centred) * 1e-4)).sum() / 2


def by_definition(values, labels):
    centred = values - values.mean(0)
    centred = centred / np.sqrt((centred**2).sum() / len(centred))
    groups = [centred[labels == label] for label in np.unique(labels)]
    return rate(centred) - sum(len(group) / len(labels) * rate(group) for group in groups)


@pytest.mark.parametrize("width", [3, 14, 60])
def test_it_is_the_difference_of_coding_rates(width):
    values, labels = clusters(width=width)  # classes have both fewer and more rows than features

    assert score_of("transrate", values, labels) == pytest.approx(by_definition(values, labels), rel=1e-8)


def test_neither_unit_nor_origin_of_the_features_matters():
    values, labels = clusters()

    assert score_of("transrate", 1000 * values - 5, labels) == pytest.approx(score_of("transrate", values, labels))


def test_labels_by_chance_are_worth_almost_nothing():
    values, _ = clusters(count=4000, classes=2)
    labels = np.random.default_rng(3).integers(0, 2, len(values))

    assert 0 <= score_of("transrate", values, labels) < 0.02


def test_features_that_never_vary_are_worth_nothing():
    assert score_of("transrate", np.full((9, 4), 2.5), np.arange(9) % 3) == 0
