"""The optimum against scikit-learn's, the gradient against differences, and many together against each alone."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from featurecache.errors import ConfigError
from featurecache.features import FeatureBatch
from heads import _logistic_path, _logits, _newton, _preconditioner
from heads._logits import Passes
from heads.logistic import Logistic, build, solve_together
from tests.heads.samples import LAYERS, ONE, batches, joined, spec_of

TIGHT = 1e-8
"""Tolerance under which weights can be compared, not only objectives."""
STRENGTHS = (1e-6, 1e-3, 1.0, 100.0)


def columns(parts: list[FeatureBatch]) -> np.ndarray:
    """Return the (N, D) features that scikit-learn is given."""
    return torch.cat(list(joined(parts).arrays.values()), dim=1).double().numpy()


def objective(x: np.ndarray, y: np.ndarray, strength: float, weight: np.ndarray, bias: np.ndarray) -> float:
    """Return C * sum of the cross-entropies + half the squared weights, from (K, D) weights, written out."""
    logits = x @ weight.T + bias
    if len(weight) == 1:
        losses = np.logaddexp(0, logits[:, 0]) - y * logits[:, 0]
    else:
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    return strength * losses.sum() + np.square(weight).sum() / 2


def reference(x: np.ndarray, y: np.ndarray, strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, tol=1e-10, max_iter=100_000).fit(x, y)


def solved(parts: list[FeatureBatch], strength: float, task: str = "classification", **wanted: object) -> Logistic:
    head = build(spec_of(task, **{"widths": LAYERS, **wanted}), C=strength, tolerance=TIGHT)
    head.solve(parts)
    return head


def affine(head: Logistic) -> tuple[np.ndarray, np.ndarray]:
    return head.map.weight.double().numpy(), head.map.bias.double().numpy()


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("rows", [300, 25], ids=["more rows", "more features"])
def test_its_loss_is_that_of_scikit_learns_optimum(strength, rows):
    parts = batches(widths=LAYERS, rows=rows, noise=3.0)
    x, y = columns(parts), joined(parts).targets.numpy()

    weight, bias = affine(solved(parts, strength))

    model = reference(x, y, strength)
    best = objective(x, y, strength, model.coef_, model.intercept_)
    assert abs(objective(x, y, strength, weight, bias) / best - 1) < 1e-6


def test_its_probabilities_are_scikit_learns():
    parts = batches(widths=LAYERS, rows=300, noise=3.0)

    head = solved(parts, 0.1)

    said = head(joined(parts).arrays).softmax(1).numpy()
    model = reference(columns(parts), joined(parts).targets.numpy(), 0.1)
    np.testing.assert_allclose(said, model.predict_proba(columns(parts)), atol=2e-3)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_two_classes_are_penalised_as_one_column(strength):
    parts = batches(widths=LAYERS, classes=2, noise=3.0)
    x, y = columns(parts), joined(parts).targets.numpy()

    weight, bias = affine(solved(parts, strength, classes=2))

    model = reference(x, y, strength)
    best = objective(x, y, strength, model.coef_, model.intercept_)
    assert abs(objective(x, y, strength, weight[1:] - weight[:1], bias[1:] - bias[:1]) / best - 1) < 1e-6
    np.testing.assert_allclose(weight.sum(0), 0, atol=1e-6)


def test_each_of_several_labels_is_a_regression_of_its_own():
    parts = batches("multilabel", LAYERS, rows=200, noise=3.0)
    x, labels = columns(parts), joined(parts).targets.numpy()

    weight, bias = affine(solved(parts, 0.05, "multilabel"))

    for k in range(labels.shape[1]):
        model = reference(x, labels[:, k], 0.05)
        best = objective(x, labels[:, k], 0.05, model.coef_, model.intercept_)
        assert abs(objective(x, labels[:, k], 0.05, weight[k : k + 1], bias[k : k + 1]) / best - 1) < 1e-6


def test_a_label_that_no_row_has_is_said_with_the_odds_of_one_half_row():
    parts = batches("multilabel", rows=90)
    for part in parts:
        part.targets[:, 1] = 0

    head = solved(parts, 1.0, "multilabel", widths=ONE)

    said = head(joined(parts).arrays)[:, 1]
    torch.testing.assert_close(said, torch.full((90,), -float(np.log(181))))


def test_a_class_without_rows_is_never_the_answer_and_changes_no_other():
    parts = batches(widths=LAYERS, classes=3, noise=3.0)
    arrays = joined(parts).arrays

    three, five = solved(parts, 0.1, classes=3)(arrays), solved(parts, 0.1, classes=5)(arrays)

    torch.testing.assert_close(five[:, :3], three)
    assert five[:, 3:].max() < three.min() - 100


def test_a_sweep_over_C_gives_what_each_gives_alone():
    parts = batches(widths=LAYERS, rows=80, noise=3.0)
    heads = [build(spec_of(widths=LAYERS), C=strength, tolerance=1e-7) for strength in STRENGTHS]

    said = solve_together(heads, parts)

    for head, fact, strength in zip(heads, said, STRENGTHS, strict=True):
        alone = build(spec_of(widths=LAYERS), C=strength, tolerance=1e-7)
        assert alone.solve(parts)["objective"] == pytest.approx(fact["objective"], rel=1e-6)
        assert fact["C"] == head.C == strength


def test_what_does_not_stay_in_memory_is_walked_over_again(monkeypatch):
    parts = batches(widths=LAYERS, rows=80, noise=3.0)
    kept = solved(parts, 0.1)
    monkeypatch.setattr(_logits, "KEPT_BYTES", 40 * sum(LAYERS.values()) * 4)
    monkeypatch.setattr(_logits, "BLOCK", 32)

    walked = solved(parts, 0.1)

    torch.testing.assert_close(walked.map.weight, kept.map.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_rows_say_the_same_where_the_losses_have_just_been_told(task):
    parts = batches(widths=LAYERS, noise=3.0, task=task)
    passes = Passes(build(spec_of(widths=LAYERS, task=task)).inputs, parts, spec_of(widths=LAYERS, task=task))
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(3, passes.columns.count, passes.width + 1, generator=draw, dtype=torch.float64) / 9
    afresh = passes.said(points[1:])

    passes.losses(points)
    passes.kept = []
    told = passes.said(points[1:])

    torch.testing.assert_close(told, afresh, rtol=1e-5, atol=2e-6)
    assert passes.said(points + 1) == []


def test_a_sweep_that_would_take_too_much_memory_is_solved_in_parts(monkeypatch):
    parts = batches(widths=LAYERS, rows=80, noise=3.0)
    heads = [build(spec_of(widths=LAYERS), C=strength, tolerance=1e-7) for strength in STRENGTHS]
    together = solve_together(heads, parts)
    monkeypatch.setattr(_logistic_path, "STATE_BYTES", 1)

    apart = solve_together(heads, parts)

    assert [fact["objective"] for fact in apart] == pytest.approx([fact["objective"] for fact in together], rel=1e-6)


def test_features_wider_than_the_known_directions_reach_the_same_optimum(monkeypatch):
    parts = batches(widths=LAYERS, rows=80, noise=3.0)
    known = solved(parts, 1.0).solve(parts)
    monkeypatch.setattr(_preconditioner, "DIRECTIONS", 10)

    some = solved(parts, 1.0).solve(parts)

    assert some["objective"] == pytest.approx(known["objective"], rel=1e-6)


def test_features_far_from_zero_cost_no_precision():
    parts = batches(widths=LAYERS, rows=80, noise=3.0)
    near = solved(parts, 0.1).solve(parts)
    for part in parts:
        for values in part.arrays.values():
            values += 1000

    far = solved(parts, 0.1).solve(parts)

    assert far["objective"] == pytest.approx(near["objective"], rel=1e-4)


def test_one_class_only_is_refused():
    parts = batches()
    for part in parts:
        part.targets[:] = 2

    with pytest.raises(ConfigError, match="needs rows that differ; all 90 training rows have the same label"):
        build(spec_of()).solve(parts)


def test_regression_is_refused_with_what_does_it():
    with pytest.raises(ConfigError, match=r"logistic cannot do regression: .* Give --head ridge"):
        build(spec_of("regression"))


@pytest.mark.parametrize("strength", [0.0, -1.0, float("inf")])
def test_a_C_that_weighs_nothing_is_refused(strength):
    with pytest.raises(ConfigError, match="C must be positive"):
        build(spec_of(), C=strength)


def test_it_says_when_it_stopped_above_the_optimum(monkeypatch, caplog):
    monkeypatch.setattr(_logistic_path, "STEPS", 1)
    monkeypatch.setattr(_newton, "ROUNDS", 1)

    with caplog.at_level(logging.WARNING, "featurecache"):
        solved(batches(noise=3.0), 10.0, widths=ONE)

    assert "logistic: C 10 stopped" in caplog.text


@pytest.mark.parametrize("tolerance", [0.0, 1e-12, 1.0])
def test_a_tolerance_that_cannot_be_kept_is_refused(tolerance):
    with pytest.raises(ConfigError, match=r"tolerance must lie in \[1e-09, 1\)"):
        build(spec_of(), tolerance=tolerance)


def test_a_less_exact_end_costs_less():
    parts = batches(widths=LAYERS, rows=80, noise=3.0)

    rough, exact = (build(spec_of(widths=LAYERS), C=10.0, tolerance=end).solve(parts) for end in (1e-2, 1e-8))

    assert rough["products"] < exact["products"]
    assert 0 <= rough["objective"] / exact["objective"] - 1 < 1e-2


def test_a_C_under_which_no_row_weighs_anything_any_more_is_solved_without_an_error():
    head = solved(batches(widths=ONE, noise=1e-3), 1e12, widths=ONE)

    assert head.map.weight.isfinite().all()
