"""Heads as scikit-learn's estimators: cloned, cross-validated, and trained as the verb trains them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurecache.errors import ConfigError, UnknownNameError
from heads import HEADS
from heads._checkpoint import load_head
from pipelines.estimator import HeadClassifier
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from tests.heads.samples import READ, batches, joined, shapes_of

NAMES = np.array(["ant", "bee", "cow", "doe"])


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Features (90, 8) and their labels, as words."""
    whole = joined(batches())
    (values,) = whole.arrays.values()
    return values.numpy(), NAMES[whole.targets.numpy()]


OFFERED = [name for name in HEADS.names() if not getattr(HEADS.load(name), "CONSTANTS", ())]


@pytest.mark.parametrize("head", OFFERED)
def test_every_head_without_a_text_side_learns_from_arrays(head):
    whole = joined(batches(widths=shapes_of(READ[HEADS.load(head).CONSUMES]), rows=120))
    arrays = {name: values.numpy() for name, values in whole.arrays.items()}
    labels = NAMES[whole.targets.numpy()]

    fitted = HeadClassifier(head, epochs=100, lr=0.01).fit(arrays, labels)

    assert fitted.score(arrays, labels) > 0.5  # of four classes
    assert fitted.predict_proba(arrays).shape == (120, 4)
    assert set(fitted.predict(arrays)) <= set(NAMES)


def test_it_is_cloned_with_the_options_of_its_head():
    first = HeadClassifier("lfa", start="probe", epochs=3)

    second = clone(first).set_params(width=8, epochs=4)

    assert clone(first).get_params() == first.get_params()
    assert second.get_params()["width"] == 8 and second.epochs == 4 and second.options == {"start": "probe", "width": 8}
    assert "start='probe'" in repr(first) and is_classifier(first)


def test_scikit_learn_cross_validates_searches_and_chains_it(rows):
    features, labels = rows

    scores = cross_val_score(HeadClassifier("ridge"), features, labels, cv=3)
    search = GridSearchCV(HeadClassifier("linear", epochs=10), {"lr": [1e-6, 0.05]}, cv=3).fit(features, labels)
    chain = make_pipeline(StandardScaler(), HeadClassifier("ridge")).fit(features, labels)

    assert scores.shape == (3,) and scores.min() > 0.6
    assert search.best_params_ == {"lr": 0.05}
    assert chain.score(features, labels) > 0.8


def test_on_a_store_it_is_the_head_that_the_verb_trains(digits_store, tmp_path):
    train(TrainHeadConfig(store=digits_store, head="lfa", out=tmp_path / "run", epochs=3, quiet=True))

    fitted = HeadClassifier("lfa", epochs=3).fit(digits_store)

    of_the_verb = load_head(tmp_path / "run")[0].state_dict()
    for name, values in fitted.head_.state_dict().items():
        np.testing.assert_array_equal(values.numpy(), of_the_verb[name].numpy())
    assert fitted.classes_[0] == "digit 0" and 0.5 < fitted.score(digits_store) <= 1
    assert len(fitted.predict(digits_store)) == len(fitted.predict_proba(digits_store))


def test_the_same_seed_gives_the_same_values_and_nothing_else_is_drawn_from(rows):
    import torch

    features, labels = rows
    before = torch.get_rng_state()

    one, two = (HeadClassifier("linear", epochs=2, seed=3).fit(features, labels) for _ in range(2))

    np.testing.assert_array_equal(one.decision_function(features), two.decision_function(features))
    assert torch.equal(before, torch.get_rng_state())
    assert (pickle.loads(pickle.dumps(one)).predict(features) == one.predict(features)).all()


def test_what_cannot_be_learned_from_is_refused_with_every_problem(rows):
    features, labels = rows

    with pytest.raises(ConfigError, match=r"(?s)2 problems.*b holds NaN.*unequal numbers of rows: a 90, b 2"):
        HeadClassifier("ridge").fit({"a": features, "b": np.full((2, 3), np.nan)}, labels)
    with pytest.raises(ConfigError, match="one class, so there is nothing to tell apart"):
        HeadClassifier("ridge").fit(features, np.zeros(90))
    with pytest.raises(ConfigError, match="must hold 90 labels"):
        HeadClassifier("ridge").fit(features, labels[:5])
    with pytest.raises(ConfigError, match="y is missing"):
        HeadClassifier("ridge").fit(features)
    with pytest.raises(ConfigError, match=r"has no option 'wdith'.*width"):
        HeadClassifier("lfa", wdith=3).fit(features, labels)
    with pytest.raises(UnknownNameError, match="linear"):
        HeadClassifier("linaer").fit(features, labels)
    with pytest.raises(NotFittedError):
        HeadClassifier("ridge").predict(features)
    with pytest.raises(ConfigError, match="fitted on embedding, but X has other"):
        HeadClassifier("ridge").fit(features, labels).predict({"other": features})
