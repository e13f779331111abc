"""LEEP against its definition, one row and one class at a time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from tests.pipelines.scores.samples import clusters, score_of


def by_definition(logits, labels):
    guesses, total = softmax(logits, axis=1), 0.0
    for row, label in enumerate(labels):
        likelihood = 0.0
        for source in range(logits.shape[1]):
            own = sum(guesses[i, source] for i in range(len(labels)) if labels[i] == label)
            likelihood += guesses[row, source] * own / guesses[:, source].sum()
        total += np.log(likelihood)
    return total / len(labels)


def test_it_is_the_likelihood_of_the_labels_by_the_definition():
    logits, labels = clusters(count=30, width=5, classes=3)

    assert score_of("leep", logits, labels) == pytest.approx(by_definition(logits, labels), rel=1e-10)


def test_a_source_class_without_mass_is_left_out():
    logits, labels = clusters(count=30, width=5, classes=3)
    never = np.hstack([logits, np.full((30, 1), -2e4)])

    assert score_of("leep", never, labels) == pytest.approx(score_of("leep", logits, labels), rel=1e-12)


def test_of_certain_answers_it_is_nce():
    logits, labels = clusters(count=60, width=5, classes=3)
    certain = 1e4 * np.eye(5)[logits.argmax(1)]

    assert score_of("leep", certain, labels) == pytest.approx(score_of("nce", logits, labels), rel=1e-12)


def test_answers_that_never_differ_leave_the_entropy_of_the_labels():
    labels = np.array([0, 0, 0, 1])

    assert score_of("leep", np.zeros((4, 7)), labels) == pytest.approx(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
