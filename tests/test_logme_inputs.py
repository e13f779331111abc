"""LogME: what it accepts, and what it refuses with which message."""

from typing import Any

import numpy as np
import pytest

from logme import LogME, LogMEError, Moments, logme
from tests.logme_samples import Array, classes, values


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8, np.bool_])
def test_features_of_any_real_dtype_are_cast_to_float64(dtype: Any) -> None:
    features, labels = classes()
    narrow = np.abs(features * 4).astype(dtype)

    assert logme(narrow, labels) == logme(narrow.astype(np.float64), labels)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_labels_of_any_integer_dtype_count(dtype: Any) -> None:
    features, labels = classes()

    assert logme(features, labels.astype(dtype)) == logme(features, labels)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.bool_])
def test_one_hot_targets_are_labels(dtype: Any) -> None:
    features, labels = classes()

    assert logme(features, np.eye(4)[labels].astype(dtype)) == logme(features, labels)


def test_lists_are_fine_and_one_regression_column_needs_no_second_axis() -> None:
    features, targets = values(columns=1)

    flat = logme(features.tolist(), targets[:, 0].tolist(), task="regression")

    assert flat == logme(features, targets, task="regression")


def test_inputs_are_not_changed() -> None:
    for rows in (8, 120):
        features, labels = classes(rows)
        copies = features.copy(), labels.copy()
        features.flags.writeable = labels.flags.writeable = False
        for algorithm in ("fixed_point", "evidence"):
            LogME(algorithm=algorithm, rescale=True).fit(features, labels).predict(features)
        np.testing.assert_array_equal(features, copies[0])
        np.testing.assert_array_equal(labels, copies[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [8, 120])
def test_nan_and_infinity_are_refused_before_lapack_sees_them(
    bad: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("svd", "eigh"):
        monkeypatch.setattr(np.linalg, name, lambda *_, **__: pytest.fail("LAPACK was called"))
    features, labels = classes(rows)
    features[7, 3] = bad

    with pytest.raises(LogMEError, match=rf"features: {bad} in row 7, column 3"):
        logme(features, labels)


def test_the_bad_row_is_counted_over_all_updates_and_nothing_of_the_batch_is_added() -> None:
    features, labels = classes()
    moments = Moments(12, 4).update(features[:50], labels[:50])
    features[52, 1] = np.nan

    with pytest.raises(LogMEError, match="row 52, column 1"):
        moments.update(features[50:], labels[50:])

    assert moments.n == 50


def test_nan_in_targets_is_refused() -> None:
    features, targets = values()
    targets[5, 2] = np.nan

    with pytest.raises(LogMEError, match="targets: nan in row 5, column 2"):
        logme(features, targets, task="regression")


@pytest.mark.parametrize(
    ("targets", "task", "message"),
    [
        ([0.0, 1.0, 1.0], "classification", "labels must be integers, got float64"),
        ([0, 1, -2], "classification", "label -2 in row 2 is negative"),
        ([True, False, True], "classification", "labels must be integers, got bool"),
        (["a", "b", "c"], "classification", "targets must be numbers"),
        ([[1, 1], [0, 1], [1, 0]], "classification", "must be one-hot; or use task='multilabel'"),
        ([[2, 0], [0, 1], [1, 0]], "classification", "must be 0 or 1"),
        ([[0, 1], [0, 3], [1, 0]], "multilabel", "must be 0 or 1; use task='regression'"),
        ([0, 1], "classification", r"a target for each row, got \(3, 2\), 2 targets"),
        ([[[1.0]], [[2.0]], [[3.0]]], "regression", r"\(N,\) or \(N, K\), got float64 \(3, 1, 1\)"),
        ([0, 1, 0], "ranking", "task='ranking' is unknown; choose one of classification"),
    ],
)
def test_targets_that_do_not_fit_the_task_are_refused(targets: Any, task: str, message: str) -> None:
    with pytest.raises(LogMEError, match=message):
        logme(np.eye(3)[:, :2], targets, task=task)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(3), r"features must be \(N, D\)"),
        (np.zeros((3, 0)), r"features must be \(N, D\)"),
        (np.full((3, 2), 1j), "features must be real numbers, got complex128"),
        (np.full((3, 2), 1e200), "squares of the features overflow"),
        (np.array([["a"], ["b"], ["c"]]), "features must be real numbers"),
    ],
)
def test_features_that_cannot_be_scored_are_refused(features: Array, message: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(LogMEError, match=message):
        logme(features, [0, 1, 1])


@pytest.mark.parametrize("option", ["algorithm", "variant"])
def test_an_unknown_option_is_answered_with_the_known_ones(option: str) -> None:
    options: dict[str, Any] = {option: "icml"}

    with pytest.raises(LogMEError, match=f"{option}='icml' is unknown; choose one of "):
        LogME(**options)


def test_fewer_than_two_rows_are_refused() -> None:
    with pytest.raises(LogMEError, match="at least 2 rows, got 1"):
        logme(np.ones((1, 3)), [0])
    with pytest.raises(LogMEError, match="at least 2 rows, got 0"):
        LogME().fit_moments(Moments(3, 2))


def test_moments_refuse_what_does_not_fit_them() -> None:
    features, labels = classes()
    moments = Moments.of(features, labels)

    with pytest.raises(LogMEError, match=r"cannot take rows \(120, 5\)"):
        moments.update(features[:, :5], labels)
    with pytest.raises(LogMEError, match="label 9 in row 120 is outside the 4 classes"):
        moments.update(features[:1], [9])
    with pytest.raises(LogMEError, match="width and num_targets must be at least 1"):
        Moments(0, 3)
    with pytest.raises(LogMEError, match=r"\('classification', 12, 5\) do not fit"):
        moments.merge(Moments(12, 5))
    with pytest.raises(LogMEError, match="cannot subtract 120 rows"):
        Moments(12, 4).subtract(moments)
    with pytest.raises(LogMEError, match="moments of a classification task do not fit LogME"):
        LogME(task="regression").fit_moments(moments)
    with pytest.raises(LogMEError, match="this is no state of Moments: task, gram"):
        Moments.from_state({"sums": np.zeros((1, 1))})


def test_added_products_are_checked() -> None:
    gram, sums = np.eye(3), np.zeros((2, 3))

    with pytest.raises(LogMEError, match=r"gram has shape \(2, 2\), these moments need \(3, 3\)"):
        Moments(3, 2).add(np.eye(2), sums, [1, 2])
    with pytest.raises(LogMEError, match="gram: nan in row 0, column 0"):
        Moments(3, 2).add(gram * np.nan, sums, [1, 2])
    with pytest.raises(LogMEError, match="for labels, the 3 of counts"):
        Moments(3, 2).add(gram, sums, [1, 2], n=4)
    with pytest.raises(LogMEError, match="n must be the number of rows .*, got None"):
        Moments(3, 2, task="regression").add(gram, sums, [1.5, 2])


def test_predicting_before_fitting_or_on_another_width_is_refused() -> None:
    features, labels = classes()

    with pytest.raises(LogMEError, match="not fitted; call fit"):
        LogME().predict(features)
    with pytest.raises(LogMEError, match=r"must be \(N, 12\) as in fit, got \(120, 5\)"):
        LogME().fit(features, labels).predict(features[:, :5])
