"""NCE against the entropy of the pairs less the entropy of the predictions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.pipelines.scores.samples import clusters, score_of


def entropy(things):
    shares = np.array(list(Counter(things).values())) / len(things)
    return -(shares * np.log(shares)).sum()


def test_it_is_minus_the_conditional_entropy_by_the_chain_rule():
    logits, labels = clusters(count=80, width=5, distance=0.4)
    predicted = logits.argmax(1).tolist()

    expected = entropy(predicted) - entropy(list(zip(labels.tolist(), predicted, strict=True)))

    assert score_of("nce", logits, labels) == pytest.approx(expected, rel=1e-10)


def test_answers_that_settle_the_label_score_zero():
    labels = np.arange(12) % 3

    assert score_of("nce", np.eye(5)[labels + 2], labels) == 0
