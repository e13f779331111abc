"""Moments: streamed, merged, subtracted and stored statistics give the model of the rows."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logme import LogME, Moments, logme
from tests.logme_samples import Array, assert_same, classes, values


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
@pytest.mark.parametrize(("rows", "width"), [(150, 12), (30, 30), (31, 30), (20, 40)])
def test_any_cutting_into_batches_and_shards_gives_the_same_model(task: str, rows: int, width: int) -> None:
    features, targets = classes(rows, width) if task == "classification" else values(rows, width)
    if task == "multilabel":
        targets = (targets > 0).astype(np.uint8)
    whole = LogME(task=task).fit(features, targets)
    columns = 4 if task == "classification" else 3

    for seed in range(6):
        rng = np.random.default_rng(seed)
        cuts = np.sort(rng.integers(0, rows + 1, rng.integers(0, 8)))
        shards = [Moments(width, columns, task=task) for _ in range(3)]
        for batch in np.split(np.arange(rows), cuts):
            shards[rng.integers(3)].update(features[batch], targets[batch])
        merged = shards[0].merge(shards[1]).merge(shards[2])
        assert merged.n == rows
        assert_same(LogME(task=task).fit_moments(merged), whole)


def test_up_to_width_rows_are_held_and_more_are_not() -> None:
    features, labels = classes(rows=500, width=20)
    moments = Moments(20, 4).update(features[:20], labels[:20])
    assert moments.state()["rows"].shape == (20, 20)

    for start in range(20, 500, 3):
        moments.update(features[start : start + 3], labels[start : start + 3])
        assert len(moments.state()["rows"]) <= 20


def test_few_rows_keep_the_digits_that_a_gram_matrix_loses() -> None:
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    right, _ = np.linalg.qr(rng.normal(size=(40, 30)))
    features = left * np.logspace(0, -9, 30) @ right.T  # singular values that squaring would lose

    model = LogME().fit(features, np.arange(30) % 3)

    assert model.rank_ == 30
    assert model.condition_ == pytest.approx(1e9, rel=1e-4)


def test_products_are_those_of_the_rows() -> None:
    features, labels = classes()
    for rows in (8, 120):
        moments = Moments.of(features[:rows], labels[:rows])
        np.testing.assert_allclose(moments.gram, features[:rows].T @ features[:rows], rtol=1e-12)
        np.testing.assert_allclose(moments.sums, np.eye(4)[labels[:rows]].T @ features[:rows], atol=1e-12)
        np.testing.assert_array_equal(moments.counts, np.bincount(labels[:rows]))
        assert moments.n == rows


@pytest.mark.parametrize("rows", [120, 8])
def test_products_made_elsewhere_can_be_added(rows: int) -> None:
    features, labels = classes(rows)
    hot = np.eye(4, dtype=np.float32)[labels]

    added = Moments(12, 4).add(features.T @ features, hot.T @ features, hot.sum(axis=0))

    assert added.n == rows
    np.testing.assert_allclose(LogME().fit_moments(added).score_, logme(features, labels), rtol=1e-8)


def test_products_and_rows_can_be_mixed() -> None:
    features, targets = values(100, 12)
    head, tail = slice(0, 5), slice(5, 100)

    mixed = Moments(12, 3, task="regression").update(features[head], targets[head])
    gram, sums = features[tail].T @ features[tail], targets[tail].T @ features[tail]
    mixed.add(gram, sums, (targets[tail] ** 2).sum(axis=0), n=95)

    assert_same(LogME(task="regression").fit_moments(mixed), LogME(task="regression").fit(features, targets))


def test_the_published_rank_rule_for_few_rows_holds_for_products_too() -> None:
    features, labels = classes(rows=9)
    added = Moments.of(features, labels).subtract(Moments(12, 4))  # forgets the rows, keeps the Gram

    model = LogME(variant="reference").fit_moments(added)

    assert model.rank_ == 9
    assert model.score_ == pytest.approx(logme(features, labels, variant="reference"), rel=1e-6)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_subtracting_a_shard_leaves_the_model_of_the_others(task: str) -> None:
    features, targets = classes(300) if task == "classification" else values(300)
    kept, taken = slice(0, 200), slice(200, 300)

    left = Moments.of(features, targets, task=task).subtract(Moments.of(features[taken], targets[taken], task=task))

    assert left.n == 200
    assert_same(LogME(task=task).fit_moments(left), LogME(task=task).fit(features[kept], targets[kept]))


def test_the_round_off_that_subtraction_leaves_is_not_taken_for_directions() -> None:
    features, labels = classes(rows=2000)
    few, many = slice(0, 5), slice(5, 2000)
    shares = Moments.of(features * 1e3, labels).subtract(Moments.of(features[many] * 1e3, labels[many]))

    assert LogME().fit_moments(shares).rank_ <= 5
    assert shares.n == len(labels[few])


def test_merging_and_subtracting_leave_the_other_moments_alone() -> None:
    features, labels = classes()
    one, other = Moments.of(features[:60], labels[:60]), Moments(12, 4).update(features[60:68], labels[60:68])
    before = {name: value.copy() for name, value in other.state().items()}

    one.merge(other).subtract(other)

    for name, value in other.state().items():
        np.testing.assert_array_equal(value, before[name])
    np.testing.assert_allclose(LogME().fit_moments(one).score_, logme(features[:60], labels[:60]), rtol=1e-9)


def test_merging_with_itself_doubles_the_rows() -> None:
    features, labels = classes(rows=8)
    moments = Moments.of(features, labels)

    moments.merge(moments)

    np.testing.assert_allclose(moments.gram, 2 * features.T @ features)
    assert moments.n == 16


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("rows", [0, 8, 120])
def test_state_survives_a_file_without_pickle(task: str, rows: int, tmp_path: Path) -> None:
    features, targets = classes() if task == "classification" else values()
    moments = Moments(12, 4 if task == "classification" else 3, task=task).update(features[:rows], targets[:rows])
    state: dict[str, Any] = dict(moments.state())
    np.savez(tmp_path / "moments.npz", **state)

    with np.load(tmp_path / "moments.npz", allow_pickle=False) as file:
        again = Moments.from_state(dict(file))

    assert (again.n, again.task, again.width) == (rows, task, 12)
    if rows:
        one, other = (LogME(task=task).fit_moments(each) for each in (again, moments))
        assert pickle.dumps(one.weights_) == pickle.dumps(other.weights_)


def test_state_is_a_copy() -> None:
    moments = Moments.of(*classes())
    moments.state()["gram"][:] = 0

    assert np.trace(moments.gram) > 1


def test_the_callers_buffer_may_be_reused() -> None:
    features, labels = classes(rows=12)
    moments, buffer = Moments(12, 4), np.empty((4, 12))
    for start in range(0, 12, 4):
        buffer[:] = features[start : start + 4]
        moments.update(buffer, labels[start : start + 4])
    buffer[:] = 0

    assert LogME().fit_moments(moments).score_ == logme(features, labels)


def test_lazy_arrays_are_read_in_blocks() -> None:
    class Lazy:
        """Counts the rows of the largest slice that was read."""

        def __init__(self, array: Array) -> None:
            self.array, self.shape, self.largest = array, array.shape, 0

        def __getitem__(self, rows: slice) -> Array:
            self.largest = max(self.largest, len(self.array[rows]))
            return self.array[rows]

    features, labels = classes(rows=9000, width=3)
    lazy: Any = Lazy(features)

    assert logme(lazy, labels) == pytest.approx(logme(features, labels), rel=1e-12)
    assert lazy.largest <= 4096


@pytest.mark.parametrize("count", [2, 60, 300])
def test_class_sums_hold_for_few_and_for_many_classes(count: int) -> None:
    features, labels = classes(rows=700, width=5, count=count)
    expected = np.stack([features[labels == label].sum(axis=0) for label in range(count)])

    np.testing.assert_allclose(Moments.of(features, labels).sums, expected, atol=1e-11)
