"""The closed form against refitting by brute force, against scikit-learn, and against itself by other routes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeClassifier

from featurecache.errors import ConfigError
from featurecache.features import FeatureBatch
from heads._checkpoint import build_head
from heads._inputs import Inputs
from heads.ridge import LAMBDAS, RidgeFit, as_logits, build, one_hot, solve_ridge, solve_together
from tests.heads.samples import CLASSES, LAYERS, ONE, TASKS, batches, joined, spec_of

WIDE = {"layers/cls/05": 64}
FEW = (0.001, 0.03, 1.0)


def solved(parts: list[FeatureBatch], task: str, widths: dict, penalties: tuple = LAMBDAS) -> RidgeFit:
    spec = spec_of(task, widths)
    return solve_ridge(Inputs(spec), parts, spec, penalties)


def columns(parts: list[FeatureBatch], task: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, D) features and the (N, C) columns that are regressed on."""
    batch = joined(parts)
    x = torch.cat(list(batch.arrays.values()), dim=1).double().numpy()
    return x, one_hot(batch.targets, CLASSES, task).numpy()


def refitted(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Return (N, C) predictions of every row by scikit-learn's ridge fitted without that row."""
    found = []
    for left_out in range(len(x)):
        rest = np.arange(len(x)) != left_out
        model = SklearnRidge(alpha=penalty * len(x), solver="cholesky").fit(x[rest], y[rest])
        found.append(model.predict(x[left_out : left_out + 1])[0])
    return np.array(found)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("widths", [ONE, WIDE], ids=["more rows", "more features"])
def test_leave_one_out_errors_equal_refitting_without_each_row(task, widths):
    parts = batches(task, widths, rows=40, size=16)
    x, y = columns(parts, task)

    fitted = solved(parts, task, widths, FEW)

    by_force = [np.square(refitted(x, y, penalty) - y).mean() for penalty in FEW]
    np.testing.assert_allclose(fitted.errors, by_force, rtol=1e-8)
    assert fitted.penalty == FEW[int(np.argmin(by_force))]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rows", [300, 9], ids=["primal", "dual"])
def test_the_solution_at_the_chosen_lambda_is_scikit_learns(task, rows):
    parts = batches(task, LAYERS, rows=rows)
    x, y = columns(parts, task)

    fitted = solved(parts, task, LAYERS)

    reference = SklearnRidge(alpha=fitted.penalty * rows, solver="svd").fit(x, y)
    np.testing.assert_allclose(fitted.weight.numpy().T, reference.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fitted.bias.numpy(), reference.intercept_, rtol=1e-6, atol=1e-9)


def test_it_decides_as_scikit_learns_ridge_classifier_does():
    parts = batches(rows=200, noise=2.0)
    head = build(spec_of())
    batch = joined(parts)

    chosen = head.solve(parts)

    x = batch.arrays["layers/cls/05"].numpy()
    reference = RidgeClassifier(alpha=chosen["lambda_per_row"] * len(x)).fit(x, batch.targets.numpy())
    np.testing.assert_array_equal(head(batch.arrays).argmax(1).numpy(), reference.predict(x))


@pytest.mark.parametrize("rows", [63, 64, 65])
def test_rows_as_many_as_features_change_nothing(rows):
    """Through the kernel up to D rows, through the Gram matrix from D + 1 on."""
    x, y = columns(parts := batches("regression", WIDE, rows=rows, size=50), "regression")

    fitted = solved(parts, "regression", WIDE, FEW)

    reference = SklearnRidge(alpha=fitted.penalty * rows, solver="svd").fit(x, y)
    np.testing.assert_allclose(fitted.weight.numpy().T, reference.coef_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rows", [90, 20])
def test_a_stream_of_small_batches_gives_what_one_batch_gives(task, rows):
    parts = batches(task, LAYERS, rows=rows, size=7)

    streamed, whole = solved(parts, task, LAYERS), solved([joined(parts)], task, LAYERS)

    np.testing.assert_allclose(streamed.errors, whole.errors, rtol=1e-8)
    assert streamed.temperature == whole.temperature
    torch.testing.assert_close(streamed.weight, whole.weight, rtol=1e-6, atol=1e-9)


def test_features_without_spread_leave_the_mean_of_the_targets():
    parts = batches("regression", rows=20)
    for part in parts:
        part.arrays["layers/cls/05"][:] = 3.0

    fitted = solved(parts, "regression", ONE)

    assert torch.isfinite(fitted.weight).all()
    prediction = fitted.bias + torch.full((8,), 3.0).double() @ fitted.weight
    torch.testing.assert_close(prediction, joined(parts).targets.double().mean(0))


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_the_temperature_is_the_likeliest_of_the_left_out_predictions(task):
    parts = batches(task, rows=60, noise=2.0)
    x, y = columns(parts, task)

    fitted = solved(parts, task, ONE)

    left_out = torch.from_numpy(refitted(x, y, fitted.penalty))
    targets = joined(parts).targets

    def loss(temperature: float) -> float:
        if task == "multilabel":
            return float(F.binary_cross_entropy_with_logits(temperature * (left_out - 0.5), targets.double()))
        return float(F.cross_entropy(temperature * left_out, targets))

    step = 10 ** (1 / 20)
    assert loss(fitted.temperature) <= min(loss(fitted.temperature * step), loss(fitted.temperature / step))


def test_logits_of_labels_change_sign_where_the_prediction_passes_one_half():
    parts = batches("multilabel", rows=80)
    fitted = solved(parts, "multilabel", ONE)
    weight, bias = as_logits(fitted, "multilabel")
    x = joined(parts).arrays["layers/cls/05"].double()

    logits, predictions = x @ weight + bias, x @ fitted.weight + fitted.bias

    assert torch.equal(logits > 0, predictions > 0.5)


def test_values_of_a_regression_are_not_rescaled():
    head, parts = build(spec_of("regression")), batches("regression")

    head.solve(parts)

    fitted = solved(parts, "regression", ONE)
    assert fitted.temperature == 1.0
    expected = joined(parts).arrays["layers/cls/05"].double() @ fitted.weight + fitted.bias
    torch.testing.assert_close(head(joined(parts).arrays), expected.float(), rtol=1e-4, atol=1e-4)


def test_it_says_when_the_best_lambda_lies_at_the_edge(caplog):
    with caplog.at_level(logging.WARNING, "featurecache"):
        solved(batches(noise=0.1), "classification", ONE, (10.0, 100.0, 1000.0))

    assert "ridge over layers/cls/05: the best lambda 10 lies at the edge of the grid" in caplog.text


def test_it_says_so_once_for_many_heads_over_the_same_arrays(caplog):
    parts = batches(widths=LAYERS, noise=0.1)
    heads = [build(spec_of(widths=LAYERS), lambdas=(10.0, 100.0, 1000.0)) for _ in range(4)]

    with caplog.at_level(logging.WARNING, "featurecache"):
        solve_together(heads, parts)

    assert caplog.text.count("ridge over layers/cls/00 ... layers/cls/05") == 1


def test_heads_over_the_same_arrays_share_the_walks(monkeypatch):
    walks = 0

    class Counted(list):
        def __iter__(self):
            nonlocal walks
            walks += 1
            return super().__iter__()

    solve_together([build(spec_of(), lambdas=(0.1 * n,)) for n in range(1, 9)], Counted(batches()))

    assert walks == 3


def test_each_of_many_heads_has_the_best_lambda_of_its_own_grid():
    parts = batches(noise=2.0)
    grids = [(0.001,), (0.001, 0.03), (1.0, 0.03, 10.0), LAMBDAS]
    heads = [build(spec_of(), lambdas=grid) for grid in grids]

    chosen = solve_together(heads, parts)

    for head, grid, said in zip(heads, grids, chosen, strict=True):
        fitted = solved(parts, "classification", ONE, tuple(sorted(grid)))
        assert said == fitted.chosen()
        torch.testing.assert_close(head.map.weight.T, as_logits(fitted, "classification")[0].float())


def test_one_row_is_refused():
    with pytest.raises(ConfigError, match="at least two training rows, got 1"):
        solved(batches(rows=1), "classification", ONE)


@pytest.mark.parametrize("lambdas", [[], [0.1, 0.0], [-1], [1, 0]])
def test_lambdas_that_are_no_penalties_are_refused(lambdas):
    with pytest.raises(ConfigError, match="lambdas must be positive, got"):
        build_head("ridge", spec_of(), {"lambdas": lambdas})


def test_only_the_lambdas_that_were_given_are_tried():
    head = build_head("ridge", spec_of(), {"lambdas": [0.5, 0.25]})

    assert head.solve(batches())["lambda_per_row"] in (0.25, 0.5)
