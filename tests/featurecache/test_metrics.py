"""Every metric by a second route (scikit-learn, or counted by hand), and intervals that know of groups."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from featurecache.metrics import BINS, METRICS, Measured, measure, primary, score

ROWS, CLASSES = 400, 7


def classified(rows: int = ROWS, classes: int = CLASSES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, C) logits that are right more often than not, and (N,) classes."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, classes, rows)
    return draw.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[targets], targets


def labelled(rows: int = 150, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    targets = draw.integers(0, 2, (rows, labels)).astype(np.uint8)
    return draw.normal(size=(rows, labels)) + targets, targets


def regressed(rows: int = 150, columns: int = 2) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(2)
    targets = draw.normal(size=(rows, columns)).astype(np.float32)
    return targets + 0.4 * draw.normal(size=(rows, columns)), targets


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores)
    return powers / powers.sum(1, keepdims=True)


def test_metrics_of_classes_equal_scikit_learns():
    scores, targets = classified()

    found = measure(scores, targets, "classification")

    predicted = scores.argmax(1)
    expected = {
        "top1": sklearn_metrics.accuracy_score(targets, predicted),
        "top5": sklearn_metrics.top_k_accuracy_score(targets, scores, k=5),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(targets, predicted),
        "macro_f1": sklearn_metrics.f1_score(targets, predicted, average="macro"),
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    recalls = sklearn_metrics.recall_score(targets, predicted, average=None)
    np.testing.assert_allclose(found["per_class_recall"], recalls, atol=1e-12)


def test_calibration_error_is_the_gap_in_every_bin_weighted_by_its_rows():
    scores, targets = classified()

    found = measure(scores, targets, "classification")["ece"].value

    confidence, hit = softmax(scores).max(1), scores.argmax(1) == targets
    by_hand = 0.0
    for number in range(BINS):
        inside = (confidence >= number / BINS) & (confidence < (number + 1) / BINS)
        if inside.any():
            by_hand += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert found == pytest.approx(by_hand, abs=1e-12)


def test_a_sure_and_right_model_is_calibrated_and_a_sure_and_wrong_one_is_not():
    targets = np.array([0, 1, 0, 1])
    sure = 1000.0 * np.eye(2)[targets]

    assert measure(sure, targets, "classification")["ece"].value == 0.0
    assert measure(sure, 1 - targets, "classification")["ece"].value == 1.0


def test_metrics_of_labels_equal_scikit_learns():
    scores, targets = labelled()

    found = measure(scores, targets, "multilabel")

    expected = {
        "mean_average_precision": sklearn_metrics.average_precision_score(targets, scores, average="macro"),
        "macro_auroc": sklearn_metrics.roc_auc_score(targets, scores, average="macro"),
    }
    assert {name: value.value for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


def test_equal_scores_of_labels_count_as_scikit_learn_counts_them():
    scores, targets = labelled()
    scores = scores.round()

    found = measure(scores, targets, "multilabel")

    assert found["mean_average_precision"].value == pytest.approx(
        sklearn_metrics.average_precision_score(targets, scores, average="macro")
    )
    assert found["macro_auroc"].value == pytest.approx(sklearn_metrics.roc_auc_score(targets, scores, average="macro"))


@pytest.mark.parametrize(("data", "task"), [(labelled, "multilabel"), (regressed, "regression")])
def test_a_row_drawn_twice_counts_twice(data, task):
    scores, targets = data()
    weights = np.random.default_rng(0).integers(0, 3, len(targets))
    drawn = np.repeat(np.arange(len(targets)), weights)

    of_weights = {name: metric(weights[None] + 0.0)[0] for name, metric in METRICS[task](scores, targets).items()}

    repeated = {
        name: metric(np.ones((1, len(drawn))))[0]
        for name, metric in METRICS[task](scores[drawn], targets[drawn]).items()
    }
    assert of_weights == pytest.approx(repeated)


def test_metrics_of_values_equal_scikit_learns():
    scores, targets = regressed()

    found = measure(scores, targets, "regression")

    expected = {
        "r2": sklearn_metrics.r2_score(targets, scores),
        "mae": sklearn_metrics.mean_absolute_error(targets, scores),
    }
    assert {name: value.value for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


def test_a_class_without_rows_counts_nowhere():
    scores, targets = classified()
    present = targets != 3
    scores[:, 3] = -100.0

    found = measure(scores[present], targets[present], "classification")

    predicted = scores[present].argmax(1)
    assert found["per_class_recall"][3] is None
    assert found["balanced_accuracy"].value == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(targets[present], predicted)
    )
    assert found["macro_f1"].value == pytest.approx(
        sklearn_metrics.f1_score(targets[present], predicted, average="macro")
    )


def test_a_class_that_is_predicted_but_absent_lowers_the_macro_f1():
    scores, targets = classified()
    absent = targets != 3

    found = measure(scores[absent], targets[absent], "classification")["macro_f1"].value

    predicted = scores[absent].argmax(1)
    assert (predicted == 3).any()
    assert found == pytest.approx(sklearn_metrics.f1_score(targets[absent], predicted, average="macro"))


def test_a_label_with_one_answer_only_is_left_out_of_the_mean():
    scores, targets = labelled()
    targets[:, 1] = 0

    found = measure(scores, targets, "multilabel")["mean_average_precision"].value

    others = [sklearn_metrics.average_precision_score(targets[:, k], scores[:, k]) for k in (0, 2)]
    assert found == pytest.approx(np.mean(others))


@pytest.mark.parametrize(("classes", "there"), [(2, False), (4, False), (5, False), (6, True)])
def test_top5_is_told_only_where_it_can_be_wrong(classes, there):
    scores, targets = classified(60, classes)

    assert ("top5" in measure(scores, targets, "classification")) is there


def test_one_row_is_measured_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = measure(np.array([[0.1, 2.0]]), np.array([1]), "classification")
        values = measure(np.array([[0.5]]), np.array([[0.7]]), "regression")
        labels = measure(np.array([[0.5, -1.0]]), np.array([[1, 0]]), "multilabel")

    assert one["top1"].value == one["top1"].high == 1.0 and one["top1"].low == pytest.approx(0.2065, abs=1e-4)
    assert one["per_class_recall"] == [None, 1.0]
    assert values["mae"].value == pytest.approx(0.2)
    assert np.isnan([values["r2"].value, values["r2"].low, labels["macro_auroc"].value]).all()


def test_intervals_are_the_same_every_time_and_move_with_the_seed():
    scores, targets = classified(100)

    assert measure(scores, targets, "classification") == measure(scores, targets, "classification")
    assert measure(scores, targets, "classification") != measure(scores, targets, "classification", seed=1)


@pytest.mark.parametrize(
    ("data", "task"), [(classified, "classification"), (labelled, "multilabel"), (regressed, "regression")]
)
def test_intervals_hold_the_value(data, task):
    found = measure(*data(), task)

    for name, value in found.items():
        if isinstance(value, Measured):
            assert value.low < value.value < value.high, name


def test_the_interval_of_an_accuracy_is_the_binomial_one():
    scores, targets = classified(1000)

    found = measure(scores, targets, "classification")["top1"]

    deviation = np.sqrt(found.value * (1 - found.value) / 1000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_rows_that_belong_together_widen_the_interval():
    draw = np.random.default_rng(3)
    group = np.repeat(np.arange(30), 20)
    right = np.repeat(draw.random(30) < 0.6, 20)
    targets = np.zeros(600, int)
    scores = np.where(right[:, None], [[1.0, 0.0]], [[0.0, 1.0]])

    alone = measure(scores, targets, "classification")["top1"]
    together = measure(scores, targets, "classification", groups=[f"patient {g}" for g in group])["top1"]

    assert together.value == alone.value
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_rows_without_a_group_are_groups_of_their_own():
    scores, targets = classified(80)

    none = measure(scores, targets, "classification", groups=[""] * 80)
    own = measure(scores, targets, "classification")

    assert none["top1"].high - none["top1"].low == pytest.approx(own["top1"].high - own["top1"].low, abs=0.03)
    assert none["top1"].low < none["top1"].high


@pytest.mark.parametrize(
    ("data", "task"), [(classified, "classification"), (labelled, "multilabel"), (regressed, "regression")]
)
def test_candidates_are_compared_by_the_metric_and_then_by_the_loss(data, task):
    scores, targets = data()

    metric, negative_loss = score(scores, targets, task)

    assert metric == pytest.approx(measure(scores, targets, task)[primary(task)].value)
    if task == "classification":
        loss = sklearn_metrics.log_loss(targets, softmax(scores))
    elif task == "multilabel":
        chance = 1 / (1 + np.exp(-scores))
        loss = -np.where(targets, np.log(chance), np.log(1 - chance)).mean()
    else:
        loss = sklearn_metrics.mean_squared_error(targets, scores)
    assert -negative_loss == pytest.approx(loss)


def test_the_loss_of_huge_logits_is_finite():
    assert score(np.array([[1e4, 0.0]]), np.array([1]), "classification") == (0.0, -1e4)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_numbers_have_no_score(task, bad):
    scores, targets = {"classification": classified, "multilabel": labelled, "regression": regressed}[task]()
    scores[5, 1] = bad

    assert np.isnan(score(scores, targets, task)).all()


def test_where_the_metric_is_undefined_the_loss_decides():
    targets = np.array([[1.0]])

    near, far = score(np.array([[0.9]]), targets, "regression"), score(np.array([[0.1]]), targets, "regression")

    assert near > far


def test_a_measured_value_is_told_with_its_interval():
    assert str(Measured(0.5, 0.25, 0.75)) == "0.5000 [0.2500, 0.7500]"
