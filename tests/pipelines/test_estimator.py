"""Heads as scikit-learn's estimators: cloned, cross-validated, and trained as the verb trains them."""

from __future__ import annotations

import io
import pickle

import joblib
import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone, is_classifier
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

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


CHECKED = [
    HeadClassifier(),
    HeadClassifier("ridge"),
    HeadClassifier("knn"),
    HeadClassifier("prototype"),
    HeadClassifier("linear", lr=0.1, epochs=30),
]
"""Estimators of each kind: solved by Newton, in closed form, without values, and trained by steps. No check is excused."""


@parametrize_with_checks(CHECKED)
def test_it_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


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


@pytest.fixture
def two(rows) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of two classes, as words."""
    features, labels = rows
    kept = np.isin(labels, ["bee", "cow"])
    return features[kept], labels[kept]


def test_with_two_classes_the_decision_is_one_number_and_positive_for_the_second(two):
    features, labels = two

    fitted = HeadClassifier("ridge").fit(features, labels)
    decision, chances = fitted.decision_function(features), fitted.predict_proba(features)

    assert decision.shape == (len(labels),) and chances.shape == (len(labels), 2)
    np.testing.assert_array_equal(fitted.predict(features), np.where(decision > 0, "cow", "bee"))
    np.testing.assert_allclose(decision, np.log(chances[:, 1] / chances[:, 0]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("relabelled", [lambda y: y, lambda y: (y == "cow").astype(int), lambda y: y == "cow"])
def test_scores_of_two_classes_are_those_of_the_decision(two, relabelled):
    features, labels = two[0], relabelled(two[1])

    found = cross_validate(HeadClassifier("ridge"), features, labels, cv=2, scoring=["roc_auc", "f1_macro"])
    fitted = HeadClassifier("ridge").fit(features, labels)
    positive = labels == fitted.classes_[1]

    assert len(found["test_roc_auc"]) == 2 and np.isfinite(found["test_roc_auc"]).all()
    assert roc_auc_score(positive, fitted.decision_function(features)) > 0.8
    if labels.dtype.kind != "U":  # scikit-learn wants to know which word is the positive one
        (precision,) = cross_val_score(
            HeadClassifier("ridge"), features, labels, cv=[(np.arange(len(labels)),) * 2], scoring="average_precision"
        )
        assert precision == pytest.approx(average_precision_score(positive, fitted.predict_proba(features)[:, 1]))


@pytest.mark.parametrize(
    "scoring", ["roc_auc_ovr", "roc_auc_ovo", "neg_log_loss", "balanced_accuracy", "top_k_accuracy"]
)
def test_scores_of_several_classes_are_taken_too(rows, scoring):
    assert np.isfinite(cross_val_score(HeadClassifier("ridge"), *rows, cv=2, scoring=scoring)).all()


@pytest.mark.parametrize(
    "missing", [np.array([0.0, 1.0, np.nan] * 30), ["ant", "bee", float("nan")] * 30, ["ant", None, "bee"] * 30]
)
def test_a_missing_label_is_refused_and_no_class(rows, missing):
    with pytest.raises(ValueError, match="y contains NaN.*give every row its label"):
        HeadClassifier("ridge").fit(rows[0], missing)


def test_a_class_may_be_called_nan(rows):
    labels = np.where(rows[1] == "ant", "nan", rows[1])

    assert list(HeadClassifier("ridge").fit(rows[0], labels).classes_) == ["bee", "cow", "doe", "nan"]


def test_labels_that_are_no_classes_are_refused(rows):
    features, labels = rows

    with pytest.raises(ValueError, match="continuous"):
        HeadClassifier("ridge").fit(features, np.linspace(0, 1, 90))
    with pytest.raises(ValueError, match="1d array"):
        HeadClassifier("ridge").fit(features, np.eye(2)[np.arange(90) % 2])
    with pytest.warns(DataConversionWarning, match="column-vector"):
        HeadClassifier("ridge").fit(features, labels[:, None])


def test_features_are_taken_as_lists_tensors_and_maps_of_files_and_refused_as_sparse(rows, tmp_path):
    features, labels = rows
    np.save(tmp_path / "x.npy", features)
    fitted = HeadClassifier("ridge").fit(features, labels)

    for given in (features.tolist(), torch.from_numpy(features), np.load(tmp_path / "x.npy", mmap_mode="r")):
        np.testing.assert_array_equal(fitted.decision_function(given), fitted.decision_function(features))
    with pytest.raises(TypeError, match="[Ss]parse"):
        HeadClassifier("ridge").fit(scipy.sparse.csr_array(features), labels)
    with pytest.raises(ValueError, match="7 features.*expecting 8"):
        fitted.predict(features[:, :7])


def test_a_data_frame_gives_its_columns_names(rows):
    pandas = pytest.importorskip("pandas")
    features, labels = rows
    frame = pandas.DataFrame(features, columns=[f"f{i}" for i in range(8)])

    fitted = HeadClassifier("ridge").fit(frame, pandas.Series(labels, dtype="category"))

    assert list(fitted.feature_names_in_) == list(frame.columns) and fitted.n_features_in_ == 8
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.predict(frame[frame.columns[::-1]])
    with pytest.raises(ValueError, match="y contains NaN"):
        HeadClassifier("ridge").fit(frame, pandas.Series([*labels[:-1], None]))


def test_arrays_of_another_shape_than_those_it_learned_from_are_refused(rows):
    features, labels = rows
    fitted = HeadClassifier("ridge").fit({"a": features, "b": features[:, :3]}, labels)

    assert fitted.n_features_in_ == 11
    with pytest.raises(ConfigError, match=r"fitted on b with rows of the shape \(3,\), but X has \(4,\)"):
        fitted.predict({"a": features, "b": features[:, :4]})


def test_what_is_fitted_on_one_array_of_a_store_predicts_bare_arrays(digits_store):
    from featurecache.stores import open_store

    store = open_store(digits_store)
    fitted = HeadClassifier("ridge", layers="4", tokens="cls").fit(store)

    of_arrays = fitted.predict(store.to_numpy("layers/cls/04", split="test"))

    np.testing.assert_array_equal(of_arrays, fitted.predict(store))


def test_options_of_a_head_are_searched_and_kept_by_joblib(rows):
    features, labels = rows
    chain = make_pipeline(StandardScaler(), HeadClassifier("knn", k=1))
    search = GridSearchCV(chain, {"headclassifier__k": [1, 5]}, cv=2).fit(features, labels)
    file = io.BytesIO()
    joblib.dump(search.best_estimator_, file)
    file.seek(0)

    again = joblib.load(file)

    assert again[-1].options == {"k": search.best_params_["headclassifier__k"]}
    np.testing.assert_array_equal(again.predict_proba(features), search.predict_proba(features))


def test_a_pickle_that_holds_the_options_in_one_entry_is_still_read():
    state = HeadClassifier("knn").__getstate__()

    old = HeadClassifier.__new__(HeadClassifier)
    old.__setstate__({**state, "options": {"k": 3}})

    assert old.options == {"k": 3} and clone(old).get_params()["k"] == 3


@pytest.mark.parametrize("name", ["options", "predict", "classes_"])
def test_an_option_named_as_something_of_the_class_is_refused_when_fitted(rows, name):
    with pytest.raises(ConfigError, match=f"head ridge has no option '{name}'"):
        HeadClassifier("ridge", **{name: 1}).fit(*rows)


def test_every_argument_is_explained():
    import inspect
    import re

    arguments = set(inspect.signature(HeadClassifier).parameters) - {"options"}
    explained = set(re.findall(r"^ +(\w+): ", HeadClassifier.__init__.__doc__, re.MULTILINE))

    assert arguments <= explained
    assert "**options: " in HeadClassifier.__init__.__doc__
