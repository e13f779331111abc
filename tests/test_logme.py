"""LogME: its formulas derived a second time by brute force, its edge cases, its predictions."""

import runpy
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logme import LogME, LogMEWarning, Moments, logme
from tests.logme_samples import Array, assert_same, classes, values


def brute_log_evidence(features: Array, target: Array, alpha: float, beta: float) -> float:
    """Log density of y under Normal(0, F F' / alpha + I / beta), from the (N, N) covariance."""
    rows = len(target)
    covariance = features @ features.T / alpha + np.eye(rows) / beta
    _, log_det = np.linalg.slogdet(covariance)
    return float(-(log_det + target @ np.linalg.solve(covariance, target) + rows * np.log(2 * np.pi)) / 2)


def written_out(features: Array, target: Array) -> tuple[float, float, float]:
    """(evidence / N, alpha, beta) of one column, by the fixed point on explicit (D, D) matrices."""
    rows, width = features.shape
    alpha = beta = 1.0
    for _ in range(11):
        ratio = alpha / beta
        inverse = np.linalg.inv(features.T @ features + ratio * np.eye(width))
        weights = inverse @ features.T @ target
        effective = np.trace(inverse @ features.T @ features)
        error = float(np.sum((features @ weights - target) ** 2))
        alpha = effective / (weights @ weights + 1e-5)
        beta = (rows - effective) / (error + 1e-5)
        if abs(alpha / beta - ratio) / ratio <= 1e-3:
            break
    _, log_det = np.linalg.slogdet(alpha * np.eye(width) + beta * features.T @ features)
    quadratic = beta * error + alpha * (weights @ weights)
    logs = width * np.log(alpha) + rows * np.log(beta) - log_det - rows * np.log(2 * np.pi)
    return (logs - quadratic) / 2 / rows, alpha, beta


@pytest.mark.parametrize(("rows", "width"), [(60, 9), (9, 9), (20, 50)])
def test_the_corrected_fixed_point_equals_the_one_on_explicit_matrices(rows: int, width: int) -> None:
    features, targets = values(rows, width)

    model = LogME(task="regression").fit(features, targets)

    for column, target in enumerate(targets.T):
        evidence, alpha, beta = written_out(features, target)
        np.testing.assert_allclose(model.evidence_[column], evidence, rtol=1e-7)
        np.testing.assert_allclose([model.alpha_[column], model.beta_[column]], [alpha, beta], rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["fixed_point", "evidence"])
@pytest.mark.parametrize(("rows", "width"), [(200, 8), (30, 60)])
def test_evidence_equals_the_gaussian_marginal_likelihood_by_brute_force(rows: int, width: int, algorithm: str) -> None:
    """Up to the guard of 1e-5 and to stopping: at a stationary point the old and the new ratio agree."""
    rng = np.random.default_rng(5)
    features = rng.normal(size=(rows, width))
    targets = features @ rng.normal(size=(width, 2)) + 3 * rng.normal(size=(rows, 2))

    model = LogME(task="regression", algorithm=algorithm).fit(features, targets)

    for column, target in enumerate(targets.T):
        brute = brute_log_evidence(features, target, model.alpha_[column], model.beta_[column]) / rows
        np.testing.assert_allclose(model.evidence_[column], brute, atol=2e-3)


def test_weights_are_the_posterior_mean_and_gamma_the_effective_dimensions() -> None:
    features, targets = values(150, 10)
    model = LogME(task="regression").fit(features, targets)

    for column in range(3):
        ratio = model.alpha_[column] / model.beta_[column]
        inverse = np.linalg.inv(features.T @ features + ratio * np.eye(10))
        np.testing.assert_allclose(model.weights_[column], inverse @ features.T @ targets[:, column], rtol=1e-3)
        np.testing.assert_allclose(model.gamma_[column], np.trace(inverse @ features.T @ features), rtol=1e-4)


def test_few_rows_make_the_published_score_too_high_by_the_missing_determinant() -> None:
    features, labels = classes(rows=30, width=64)

    ours, published = LogME().fit(features, labels), LogME(variant="reference").fit(features, labels)

    surplus = (64 - 30) / (2 * 30) * np.log(published.alpha_).mean()
    np.testing.assert_allclose(published.score_ - surplus, ours.score_, rtol=1e-8)
    np.testing.assert_allclose(ours.score_, logme(features, labels, algorithm="evidence"), atol=1e-2)


def test_both_algorithms_and_variants_agree_where_nothing_is_degenerate() -> None:
    features, labels = classes()
    score = logme(features, labels)

    assert logme(features, labels, variant="reference") == pytest.approx(score, rel=1e-10)
    assert logme(features, labels, algorithm="evidence") == pytest.approx(score, abs=1e-3)


def test_classification_is_regression_on_the_class_indicators() -> None:
    features, labels = classes()

    by_class = LogME().fit(features, labels)
    by_column = LogME(task="regression").fit(features, np.eye(4)[labels])

    assert_same(by_class, by_column)


def test_better_separated_classes_score_higher() -> None:
    features, labels = classes()
    means = np.random.default_rng(9).normal(size=(4, 12))

    assert logme(features + means[labels], labels) > logme(features, labels)


def test_each_column_stops_for_itself() -> None:
    """Fitting columns together or one by one is the same; the steps differ between the columns."""
    features, targets = values(80, 6, columns=5)
    targets[:, 1] = np.random.default_rng(1).normal(size=80)
    together = LogME(task="regression").fit(features, targets)

    for column in range(5):
        alone = LogME(task="regression").fit(features, targets[:, column])
        np.testing.assert_allclose(alone.evidence_[0], together.evidence_[column], rtol=1e-10)
        assert alone.n_iter_[0] == together.n_iter_[column]
    assert len(set(together.n_iter_.tolist())) > 1
    assert together.n_iter_.max() <= 11


def test_exactly_linear_targets_saturate_the_noise_precision() -> None:
    features, _ = values(100, 5)

    model = LogME(task="regression").fit(features, features @ np.arange(1.0, 6.0))

    assert model.beta_[0] == pytest.approx(100 / 1e-5, rel=0.1)


# ---- edge cases, where the published code gives a number without a word


def test_features_of_zeros_score_minus_infinity_with_a_warning() -> None:
    for rows, variant, algorithm in [
        (20, "corrected", "fixed_point"),
        (20, "reference", "fixed_point"),
        (3, "corrected", "fixed_point"),
        (3, "reference", "fixed_point"),
        (20, "corrected", "evidence"),
    ]:
        model = LogME(variant=variant, algorithm=algorithm, rescale=True)
        with pytest.warns(LogMEWarning, match="degenerate"):
            model.fit(np.zeros((rows, 5)), np.arange(rows) % 2)
        assert model.score_ == -np.inf
        assert model.rank_ == 0
        assert not model.weights_.any()
        assert not model.converged_.any()


def test_tiny_features_are_lost_only_by_the_published_threshold() -> None:
    features, labels = classes()

    assert np.isfinite(logme(features * 1e-12, labels))
    assert LogME().fit(features * 1e-12, labels).rank_ == 12
    with pytest.warns(LogMEWarning, match="degenerate"):
        assert logme(features * 1e-12, labels, variant="reference") == -np.inf


@pytest.mark.parametrize("rows", [120, 8])
def test_rescaling_makes_the_score_independent_of_the_unit(rows: int) -> None:
    features, labels = classes(rows)
    models = [LogME(rescale=True).fit(features * unit, labels) for unit in (1e-12, 1.0, 1e3)]

    np.testing.assert_allclose([model.score_ for model in models], models[1].score_, rtol=1e-9)
    assert abs(logme(features * 1e3, labels) - logme(features, labels)) > 1e-3
    assert models[2].scale_ == pytest.approx(np.sqrt((features**2).mean()) * 1e3)
    for model, unit in zip(models, (1e-12, 1.0, 1e3), strict=True):
        np.testing.assert_allclose(model.weights_ * unit, models[1].weights_, rtol=1e-6)


def test_rescaling_equals_dividing_by_the_root_mean_square() -> None:
    features, labels = classes()

    expected = logme(features / np.sqrt((features**2).mean()), labels)

    assert logme(features, labels, rescale=True) == pytest.approx(expected, rel=1e-12)


def test_a_class_without_rows_is_left_out_with_a_warning() -> None:
    features, labels = classes()
    gapped = labels + (labels > 0)

    with pytest.warns(LogMEWarning, match=r"classes without rows \[1\]: left out"):
        model = LogME().fit(features, gapped)

    assert model.classes_.tolist() == [0, 2, 3, 4]
    assert model.score_ == logme(features, labels)
    assert set(model.predict(features)) <= {0, 2, 3, 4}


def test_the_published_score_is_inflated_by_a_class_without_rows() -> None:
    features, labels = classes()

    with pytest.warns(LogMEWarning, match=r"classes without rows \[1\]: zero everywhere, which inflates"):
        model = LogME(variant="reference").fit(features, labels + (labels > 0))

    assert model.classes_.tolist() == [0, 1, 2, 3, 4]
    assert model.evidence_[1] > 5
    assert model.score_ > logme(features, labels) + 1


def test_the_published_columns_end_at_the_largest_label() -> None:
    features, labels = classes()
    moments = Moments(12, 7).update(features, labels)

    with pytest.warns(LogMEWarning, match=r"\[4, 5, 6\]"):
        model = LogME(variant="reference").fit_moments(moments)

    assert model.score_ == pytest.approx(logme(features, labels, variant="reference"), rel=1e-12)


def test_a_single_class_is_warned_about() -> None:
    features, _ = classes()

    with pytest.warns(LogMEWarning, match=r"all 120 rows are of one class \(0\)"):
        score = logme(features, np.zeros(120, dtype=int))

    assert np.isfinite(score)


def test_a_target_column_of_zeros_is_warned_about() -> None:
    features, targets = values()
    targets[:, 1] = 0

    with pytest.warns(LogMEWarning, match=r"target columns \[1\]: zero everywhere, which inflates the score"):
        model = LogME(task="regression").fit(features, targets)

    assert model.evidence_[1] > 3


def test_ordinary_input_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (8, 120):
            features, labels = classes(rows)
            for variant in ("corrected", "reference"):
                LogME(variant=variant, algorithm="evidence").fit(features, labels)
                LogME(variant=variant).fit(features, labels)


@pytest.mark.parametrize("rows", [120, 10])
def test_columns_of_zeros_and_repeated_columns_change_no_rank(rows: int) -> None:
    features, labels = classes(rows, width=6)
    padded = np.concatenate([features, np.zeros((rows, 20))], axis=1)
    doubled = np.concatenate([features, features], axis=1)

    plain, wide = LogME().fit(features, labels), LogME().fit(padded, labels)
    twice = LogME().fit(doubled / np.sqrt(2), labels)

    assert plain.rank_ == wide.rank_ == twice.rank_ == 6
    np.testing.assert_allclose([wide.score_, twice.score_], plain.score_, rtol=1e-8)
    np.testing.assert_allclose(wide.weights_[:, 6:], 0, atol=1e-12)


def test_convergence_is_reported() -> None:
    features, labels = classes(rows=30, width=64)  # few rows: the noise goes to zero slowly
    hard, easy = LogME().fit(features, labels), LogME().fit(*classes())

    assert easy.converged_.all()
    assert (easy.n_iter_ < 11).all()
    assert not hard.converged_.all()
    assert (hard.n_iter_[~hard.converged_] == 11).all()


def test_condition_is_the_ratio_of_singular_values() -> None:
    features, labels = classes()

    assert LogME().fit(features, labels).condition_ == pytest.approx(np.linalg.cond(features))


# ---- prediction and reuse


def test_prediction_is_the_first_largest_score_of_the_weights() -> None:
    features, labels = classes()
    model = LogME().fit(features, labels)

    np.testing.assert_array_equal(model.predict(features), (features @ model.weights_.T).argmax(axis=1))
    assert (model.predict(features) == labels).mean() > 0.7
    assert model.predict(np.zeros((2, 12))).tolist() == [0, 0]


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_other_tasks_predict_raw_scores(task: str) -> None:
    features, targets = values()
    targets = (targets > 0).astype(float) if task == "multilabel" else targets

    model = LogME(task=task).fit(features, targets)

    np.testing.assert_allclose(model.predict(features), features @ model.weights_.T)
    assert model.predict(features).shape == (120, 3)


def test_fitting_again_replaces_every_result() -> None:
    model = LogME().fit(*classes(seed=1))

    model.fit(*classes(rows=30, width=40, count=3, seed=2))

    assert_same(model, LogME().fit(*classes(rows=30, width=40, count=3, seed=2)))


def test_the_function_is_the_class() -> None:
    features, labels = classes()
    options: dict[str, Any] = {"algorithm": "evidence", "variant": "reference", "rescale": True}

    assert logme(features, labels, **options) == LogME(**options).fit(features, labels).score_


def test_running_the_file_is_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    stand_in = types.ModuleType("cli")
    stand_in.__dict__["score_model"] = calls.append
    monkeypatch.setitem(sys.modules, "cli", stand_in)
    monkeypatch.setattr(sys, "argv", ["logme.py", "one.zarr", "--json"])

    runpy.run_path(str(Path(__file__).resolve().parents[1] / "logme.py"), run_name="__main__")

    assert calls == [["one.zarr", "--json"]]
