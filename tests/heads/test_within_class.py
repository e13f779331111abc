"""The metric within classes against brute force: every row is left out by hand, and numpy inverts what remains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featurecache.features import FeatureBatch
from heads import HeadSpec, knn, prototype
from heads._inputs import Inputs
from heads._within_class import SHRINKAGES, TEMPERATURES, WithinClassMetric, _Spread

WIDTH = 6
SPEC = HeadSpec(shapes={"embedding": (WIDTH,)}, num_classes=3)


def make_rows(counts: tuple[int, ...], *, nuisance: float = 1.0, apart: float = 1.0, seed: int = 0) -> FeatureBatch:
    """Return rows whose classes have a mean `apart` along an axis each, and which all vary by `nuisance` along another axis."""
    draw = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(counts)), counts)
    values = draw.normal(size=(len(targets), WIDTH))
    values[np.arange(len(targets)), np.array([0, 2, 3])[targets]] += apart
    values[:, 1] *= nuisance
    order = draw.permutation(len(targets))
    arrays = {"embedding": torch.from_numpy(values[order]).float()}
    return FeatureBatch(np.arange(len(targets)), [], torch.from_numpy(targets[order]), arrays)


def sum_losses_by_hand(batch: FeatureBatch, shrinkage: float, temperature: float) -> float:
    """Return the summed cross-entropy of rows that are each left out of their class mean and of the covariance."""
    x, y = batch.arrays["embedding"].double().numpy(), batch.targets.numpy()
    classes = np.unique(y)
    degrees = len(y) - len(classes)
    scatter = sum((x[y == c] - x[y == c].mean(0)).T @ (x[y == c] - x[y == c].mean(0)) for c in classes)
    variance = np.trace(scatter) / degrees / WIDTH
    total = 0.0
    for row in range(len(y)):
        if (y == y[row]).sum() < 2:
            continue
        rest = np.arange(len(y)) != row
        means = np.stack([x[rest & (y == c)].mean(0) for c in classes])
        without = sum(
            ((x[rest & (y == c)] - m).T @ (x[rest & (y == c)] - m) for c, m in zip(classes, means, strict=True))
        )
        inverse = np.linalg.inv((1 - shrinkage) * without / degrees + shrinkage * variance * np.eye(WIDTH))
        distances = np.array([(x[row] - m) @ inverse @ (x[row] - m) for m in means]) * variance / np.sqrt(WIDTH)
        logits = -temperature * distances / 2
        total += np.logaddexp.reduce(logits) - logits[list(classes).index(y[row])]
    return total


@pytest.mark.parametrize("shrinkage", [1.0, 0.5, 0.02])
@pytest.mark.parametrize("counts", [(7, 5, 6), (4, 1, 3)], ids=["several rows", "a class of one row"])
def test_losses_are_those_of_rows_that_are_left_out_by_hand(counts, shrinkage):
    batch = make_rows(counts)
    spread = _Spread.measure(Inputs(SPEC), [batch], 3)

    found = spread.sum_losses(batch.arrays["embedding"].double(), batch.targets, shrinkage)

    by_hand = [sum_losses_by_hand(batch, shrinkage, temperature) for temperature in TEMPERATURES]
    np.testing.assert_allclose(found.numpy(), by_hand, rtol=1e-6)


def test_a_direction_in_which_all_classes_vary_counts_less():
    batch = make_rows((60, 60, 60), nuisance=30.0, apart=2.0)
    metric = WithinClassMetric(WIDTH)

    chosen = metric.solve(Inputs(SPEC), [batch], 3)

    lengths = metric(torch.eye(WIDTH)).norm(dim=1)
    assert chosen["shrinkage"] < 1
    assert lengths[1] < lengths[0] / 5


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1, 0)])
def test_next_to_no_rows_leave_the_metric_as_it_is_or_plain(counts):
    metric = WithinClassMetric(WIDTH)

    chosen = metric.solve(Inputs(SPEC), [make_rows(counts)], 3)

    assert chosen["shrinkage"] in SHRINKAGES
    assert counts != (1, 1, 1) or chosen["shrinkage"] == 1.0
    assert torch.isfinite(metric(torch.eye(WIDTH))).all()


def test_equal_rows_within_each_class_have_no_covariance_to_whiten_by():
    rows = torch.eye(3, WIDTH).repeat(2, 1)
    batch = FeatureBatch(np.arange(6), [], torch.arange(3).repeat(2), {"embedding": rows})
    metric = WithinClassMetric(WIDTH)

    assert metric.solve(Inputs(SPEC), [batch], 3) == {"shrinkage": 1.0}


@pytest.mark.parametrize("head", [prototype, knn])
def test_heads_see_through_variation_that_all_classes_share(head):
    train, test = (
        make_rows((40, 40, 40), nuisance=30.0, apart=3.0),
        make_rows((50, 50, 50), nuisance=30.0, apart=3.0, seed=1),
    )
    accuracy = {}
    for whiten in (True, False):
        built = head.build(SPEC, whiten=whiten)
        built.solve([train])
        accuracy[whiten] = float((built(test.arrays).argmax(1) == test.targets).float().mean())

    assert accuracy[True] > 0.85
    assert accuracy[True] > accuracy[False]
