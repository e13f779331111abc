"""Means, differences and their intervals over the trials of heads, from what they said of every row."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from featurecache.bootstrap import DIFFERENCE, SHARE, t_interval
from pipelines.trialling.pairing import (
    Outcome,
    Sample,
    difference,
    difference_summary,
    drawn,
    excludes_zero,
    half_width,
    summary,
)


def outcomes(*trials, groups=None):
    """Return those of trials, each a list of heads, each a list of hits."""
    return [
        [
            Outcome(np.array(groups or [f"\0{row}" for row in range(len(hits))]), np.array(hits, float), None)
            for hits in heads
        ]
        for heads in trials
    ]


def summarised(of_trials, head=0):
    return summary(drawn(of_trials)[:, :, head], SHARE, Sample.of(of_trials))


def test_one_trial_of_independent_rows_has_wilsons_interval():
    found = summarised(outcomes([[1] * 37 + [0] * 3]))

    expected = stats.binomtest(37, 40).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["deviation"] is found["trials_low"] is None


@pytest.mark.parametrize("right", [0, 1])
def test_trials_that_all_tie_have_a_width_and_stay_in_the_range(right):
    found = summarised(outcomes(*[[[right] * 30]] * 3))

    for low, high in (("low", "high"), ("trials_low", "trials_high")):
        assert 0 <= found[low] <= found["mean"] <= found[high] <= 1
        assert 0.05 < found[high] - found[low] < 0.2
    assert found["deviation"] == 0


def test_trials_near_1_have_an_interval_that_does_not_pass_it():
    found = summarised(outcomes(*([[1] * (40 - wrong) + [0] * wrong] for wrong in (0, 0, 3))))

    plain = np.array([1, 1, 37 / 40])
    assert plain.mean() + stats.t.ppf(0.975, 2) * stats.sem(plain) > 1  # what the plain t-interval says
    assert found["trials_low"] < found["mean"] < found["trials_high"] <= 1


def test_rows_of_one_group_say_nothing_but_that_an_accuracy_is_a_share():
    found = summarised(outcomes([[1, 1, 0, 1]], groups=["a"] * 4))

    assert (found["low"], found["high"]) == (0, 1)


def test_the_interval_of_a_difference_is_that_of_paired_rows():
    draw = np.random.default_rng(0)
    first = draw.random(200) < 0.8
    second = np.where(draw.random(200) < 0.1, ~first, first)
    values = drawn(outcomes([first, second]))

    found = difference(values[:, :, 1], values[:, :, 0], DIFFERENCE, Sample(200))

    gaps = second.astype(float) - first
    assert found["difference"] == pytest.approx(gaps.mean())
    half = stats.t.ppf(0.975, 199) * stats.sem(gaps)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.08)


def test_heads_that_are_right_on_the_same_rows_are_not_said_to_be_equal_on_others():
    hits = [1] * 48 + [0] * 2
    values = drawn(outcomes([hits, hits]))

    found = difference(values[:, :, 1], values[:, :, 0], DIFFERENCE, Sample(50))

    assert found["difference"] == 0 and found["low"] == -found["high"]
    assert found["high"] == pytest.approx(2.01 / 52, rel=0.02)
    assert not excludes_zero(found)


def test_a_difference_over_trials_stays_within_minus_1_and_1():
    values = drawn(outcomes([[0] * 9, [1] * 9], [[1] * 9, [1] * 9]))

    found = difference_summary(values[:, :, 1] - values[:, :, 0], DIFFERENCE, Sample(9))

    assert found["mean"] == 0.5 and -1 <= found["trials_low"] < 0.5 < found["trials_high"] <= 1
    assert half_width(np.array([0.0, 1.0])) == pytest.approx(stats.t.ppf(0.975, 1) * 0.5)


@pytest.mark.parametrize(("low", "high", "apart"), [
    (0.01, 0.2, True), (-0.2, -0.01, True), (-0.1, 0.1, False), (0.0, 0.1, False), (None, 0.1, False), (None, None, False),
])  # fmt: skip
def test_a_difference_is_established_where_its_interval_excludes_0(low, high, apart):
    assert excludes_zero({"low": low, "high": high}) is apart


def test_the_interval_over_trials_holds_the_truth_about_19_times_in_20():
    draw = np.random.default_rng(4)
    held = {0.5: 0, 0.9: 0, 0.98: 0}
    for true in held:
        for _ in range(400):
            low, high = t_interval(draw.binomial(100, true, 10) / 100, SHARE)
            held[true] += low <= true <= high

    assert all(0.92 <= count / 400 <= 0.99 for count in held.values()), held
