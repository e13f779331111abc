"""Intervals of 95 %: one bootstrap over groups, and intervals that hold their value and stay where a metric can be.

A percentile interval of a biased statistic may lie beside its value, and one of equal draws has no width. So an interval is
made about the value itself, from the variance of the draws, on the scale on which the metric has no bound: for a metric of two
bounds this is Wilson's score interval with the effective number of rows (Wilson, 1927; Korn and Graubard, 1998), for one bound
a t-interval of the logarithm of the distance to it, for none a t-interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from featurecache.seeding import generator

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

DRAWS = 1000
TAIL = 0.975
TOGETHER = 1 << 14
"""Weights that are drawn at a time: few enough for a cache."""
SHARE: Interval = (0.0, 1.0)
"""Limits of an accuracy and of all that is between none and all."""
DIFFERENCE: Interval = (-1.0, 1.0)
"""Limits of a difference of two shares, and of a rank correlation."""
UNBOUNDED: Interval = (-np.inf, np.inf)
UNKNOWN: Interval = (np.nan, np.nan)


def group_numbers(count: int, groups: Sequence[str] | None) -> npt.NDArray[np.intp]:
    """Return the number of the group of each of `count` rows, from 0; a row whose group is "" is a group of its own."""
    if groups is None or not any(groups):
        return np.arange(count)
    _, member = np.unique(np.array([name or f"\0{row}" for row, name in enumerate(groups)]), return_inverse=True)
    return np.asarray(member, np.intp)


def draw_group_weights(groups: int, draws: int, *seed: object, rows: int = 0) -> Iterator[Floats]:
    """Yield (B, groups) float64 counts of how often each group was drawn, B at a time, `draws` in all.

    Args:
        seed: what the draws depend on beside the number of groups.
        rows: rows of all groups, where the caller spreads the weights over them: B is then smaller.
    """
    draw, at_a_time = generator(*seed), max(1, TOGETHER // max(groups, rows, 1))
    for first in range(0, draws, at_a_time):
        picked = draw.integers(0, groups, (min(at_a_time, draws - first), groups))
        lines = np.arange(len(picked))[:, None] * groups
        yield np.bincount((lines + picked).ravel(), minlength=lines.size * groups).reshape(-1, groups).astype(float)


def percentile_interval(draws: Floats) -> Interval:
    """Return the middle 95 % of the draws that are numbers."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return UNKNOWN
    low, high = np.quantile(known, [1 - TAIL, TAIL])
    return float(low), float(high)


def basic_interval(value: float, draws: Floats) -> Interval:
    """Return the percentile interval turned round at the value: what resampling adds to the value, it takes off."""
    low, high = percentile_interval(draws)
    return 2 * value - high, 2 * value - low


def norm_interval(value: float, draws: Floats, noise: Floats, *, slack: float = 0.0) -> Interval:
    """Return the interval of a sum of absolute gaps in [0, 1], such as a calibration error.

    Chance alone makes gaps, so such a sum is too large in a sample and larger still in a draw of it. The basic interval takes
    that off where the gaps are well above chance; where chance alone would make as much, the interval begins at 0, and in
    between it begins between the two: the sum less what chance makes is a lower end by the triangle inequality.

    Args:
        value: the sum of the sample.
        draws: (D,) sums of the draws.
        noise: (D,) sums of the differences between the gaps of the draws and those of the sample.
        slack: what no draw shows, such as a wrong row where all are right.
    """
    low, high = basic_interval(value, draws)
    chance = float(np.quantile(noise, TAIL))
    above = min(max(value / chance - 1, 0.0), 1.0) if chance > 0 else 1.0
    low = above * low + (1 - above) * (value - chance)
    return _holding(value, low - slack, high + slack, SHARE)


def proportion_interval(share: float, count: float, *, freedom: float = np.inf) -> Interval:
    """Return Wilson's score interval of a share of `count` independent rows; with `freedom`, by the quantile of Student's t."""
    if not np.isfinite(share):
        return UNKNOWN
    low, high = _score(share, _quantile(freedom) ** 2 / count)
    return _holding(share, low, high, SHARE)


def bounded_interval(
    value: float, variance: float, limits: Interval, *, freedom: float, count: float, least: float = 0.0
) -> Interval:
    """Return the interval about a value of that variance that stays within the limits of its metric.

    Args:
        value: what was measured; NaN has no interval.
        variance: of the value: of its draws, or of a mean over trials.
        limits: least and greatest value that the metric can have.
        freedom: units that were drawn, less one. With none, nothing is known but the limits.
        count: rows that a metric of two bounds is told by where its draws are all equal.
        least: variance that is taken where the draws are all equal, for a metric within two bounds and at none of them.
    """
    low, high = limits
    if not np.isfinite(value):
        return UNKNOWN
    if freedom < 1:
        return limits
    quantile = _quantile(freedom)
    if np.isfinite(low) and np.isfinite(high):
        span = high - low
        share, spread = (value - low) / span, max(variance, least) / span**2
        inside = 0 < share < 1 and spread > 0
        found = _score(share, quantile**2 * (spread / (share * (1 - share)) if inside else 1 / count))
        return _holding(value, low + span * found[0], low + span * found[1], limits)
    half = quantile * np.sqrt(variance)
    if np.isfinite(low) or np.isfinite(high):
        bound, sign = (low, 1.0) if np.isfinite(low) else (high, -1.0)
        distance = abs(value - bound)
        if not distance:
            return value, value
        with np.errstate(over="ignore"):
            ends = sorted(bound + sign * distance * np.exp(np.array([-half, half]) / distance))
        return _holding(value, ends[0], ends[1], limits)
    return _holding(value, value - half, value + half, limits)


def drawn_interval(
    value: float, draws: Floats, limits: Interval, *, units: int, count: float | None = None
) -> Interval:
    """Return `bounded_interval` from (D,) draws of `units` independent groups."""
    known = draws[np.isfinite(draws)]
    variance = float(known.var()) * units / (units - 1) if len(known) and units > 1 else 0.0
    return bounded_interval(value, variance, limits, freedom=units - 1, count=units if count is None else count)


def difference_interval(value: float, draws: Floats, limits: Interval, *, units: int) -> Interval:
    """Return the interval of a paired difference from (D,) draws of it.

    Where two answer alike on every row, the draws are all equal; then half a row is taken to favour each (Agresti and Min,
    2005), for on other rows they might differ.
    """
    known = draws[np.isfinite(draws)]
    variance = float(known.var()) * units / (units - 1) if len(known) and units > 1 else 0.0
    least = (units + 2.0) ** -2 if variance == 0 else 0.0
    return bounded_interval(value, variance, limits, freedom=units - 1, count=units, least=least)


def t_interval(values: Floats, limits: Interval, *, tied: Interval = UNKNOWN) -> Interval:
    """Return the interval of the mean of (T,) values of trials; `tied` where there are none or several and all are equal.

    Equal trials say nothing of how far another one would be: what is known then comes from the rows that were tested.
    """
    if len(values) < 2 or not np.ptp(values):
        return tied
    mean, variance = float(values.mean()), float(values.var(ddof=1)) / len(values)
    return bounded_interval(mean, variance, limits, freedom=len(values) - 1, count=len(values))


def _quantile(freedom: float) -> float:
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(freedom, TAIL) if np.isfinite(freedom) else ndtri(TAIL))


def _score(share: float, shrink: float) -> Interval:
    """Return the ends of Wilson's interval; `shrink` is the squared quantile over the number of rows."""
    middle, half = share + shrink / 2, np.sqrt(shrink * share * (1 - share) + shrink**2 / 4)
    return float((middle - half) / (1 + shrink)), float((middle + half) / (1 + shrink))


def _holding(value: float, low: float, high: float, limits: Interval) -> Interval:
    return float(min(max(low, limits[0]), value)), float(max(min(high, limits[1]), value))
