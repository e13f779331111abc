"""How good predictions are, by task, with 95 % intervals by bootstrap over groups (over samples where there are none).

An interval holds its value and stays within the metric's limits: see `featurecache.bootstrap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.bootstrap import (
    DIFFERENCE,
    SHARE,
    UNBOUNDED,
    Interval,
    draw_group_weights,
    drawn_interval,
    group_numbers,
    norm_interval,
    proportion_interval,
)
from featurecache.features import Task

Floats = npt.NDArray[np.float64]
Metric = Callable[[Floats], Floats]
"""(B, N) sample weights -> (B,) values; a bootstrap draw is a vector of weights."""

PIECE = 8192
"""Rows of which scores are taken apart at a time."""
BINS = 15
"""Equal bins of confidence for the calibration error (Guo et al., 2017)."""
DRAWS: dict[Task, int] = {"classification": 1000, "multilabel": 200, "regression": 1000}
"""Bootstrap samples; ranking metrics pass over every label in each."""
PROPORTIONS = ("top1", "top5")
"""Metrics that are a share of the rows."""
LIMITS: dict[str, Interval] = {"r2": (-np.inf, 1.0), "mae": (0.0, np.inf)}
"""Least and greatest value of the metrics that are not between 0 and 1."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric's value with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def measure(
    scores: npt.NDArray[Any],
    targets: npt.NDArray[Any],
    task: Task,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return metric name -> `Measured`, and "per_class_recall" -> list for classification.

    Args:
        scores: (N, C) logits or probabilities of a classification, logits of a multi-label task, values of a regression.
        targets: (N,) classes, (N, K) labels or (N, K) values.
        groups: N keys of samples that belong together; "" or None: every sample is its own group.
        seed: of the bootstrap.
    """
    targets = np.asarray(targets)
    metrics, member = METRICS[task](scores, targets), group_numbers(len(targets), groups)
    units = int(member.max()) + 1
    drawn: dict[str, list[Floats]] = {name: [] for name in metrics}
    for of_groups in draw_group_weights(units, DRAWS[task], "bootstrap", seed, rows=len(targets)):
        weights = of_groups[:, member]
        for name, metric in metrics.items():
            drawn[name].append(metric.gaps(weights) if isinstance(metric, _CalibrationError) else metric(weights))
    whole = np.ones((1, len(targets)))
    count, found = _rows_that_tell(targets, member, task), dict[str, Any]()
    for name, metric in metrics.items():
        value, draws = float(metric(whole)[0]), np.concatenate(drawn[name])
        if isinstance(metric, _CalibrationError):
            interval = metric.interval(draws, units)
        elif name in PROPORTIONS and units == len(targets):
            interval = proportion_interval(value, units)
        else:
            interval = drawn_interval(value, draws, limits_of(name), units=units, count=count)
        found[name] = Measured(value, *interval)
    if task == "classification":
        found["per_class_recall"] = _recalls(scores.argmax(1), targets, scores.shape[1])
    return found


def limits_of(metric: str) -> Interval:
    """Return the least and the greatest value that a metric can have."""
    return LIMITS.get(metric, SHARE)


def difference_limits(metric: str) -> Interval:
    """Return the same of the difference of two values of a metric."""
    return UNBOUNDED if metric in LIMITS else DIFFERENCE


def _rows_that_tell(targets: npt.NDArray[Any], member: npt.NDArray[np.intp], task: Task) -> float:
    """Return by how many rows (groups, where there are some) a metric is known that no draw moves, such as one of 1.

    A mean over classes is known as well as by C / mean(1 / n) rows, n being those of a class; a ranking by the fewer of those
    that have a label and those that have not.
    """
    if task == "regression":
        return float(member.max()) + 1
    if task == "classification":
        sizes = np.array([len(np.unique(member[targets == one])) for one in np.unique(targets)])
        return float(len(sizes) / np.mean(1 / sizes))
    pairs = [(len(np.unique(member[on])), len(np.unique(member[~on]))) for on in (np.asarray(targets) > 0).T]
    return max(1.0, float(np.mean([min(pair) for pair in pairs])))


def primary(task: Task) -> str:
    """Return the metric that models of a task are chosen by; higher is better for each."""
    return {"classification": "top1", "multilabel": "mean_average_precision", "regression": "r2"}[task]


def score(scores: npt.NDArray[Any], targets: npt.NDArray[Any], task: Task) -> tuple[float, float]:
    """Return (primary metric, minus the mean loss): what candidates are compared by, higher is better.

    Scores that are not finite give (NaN, NaN). A metric that these targets leave undefined (R2 of one row, no label with
    both answers) is minus infinity for every candidate, so that the loss decides.
    """
    values, count = np.asarray(scores), np.ones((1, len(targets)))
    if not np.isfinite(values).all():
        return float("nan"), float("nan")
    metric = METRICS[task](values, targets)
    if task == "classification":
        loss = float(np.concatenate([_losses(values[piece], targets[piece]) for piece in _pieces(len(values))]).mean())
    elif task == "multilabel":
        values = np.asarray(values, dtype=np.float64)
        loss = float((np.logaddexp(0, values) - targets * values).mean())
    else:
        loss = float(np.square(np.asarray(values, dtype=np.float64) - targets).mean())
    found = float(metric[primary(task)](count)[0])
    return found if np.isfinite(found) else -float("inf"), -loss


def _pieces(count: int) -> list[slice]:
    return [slice(start, start + PIECE) for start in range(0, max(count, 1), PIECE)]


def _losses(scores: Floats, targets: npt.NDArray[Any]) -> Floats:
    """Return (B,) cross-entropies."""
    values = np.asarray(scores, dtype=np.float64)
    highest = values.max(1, keepdims=True)
    normaliser = np.log(np.exp(values - highest).sum(1)) + highest[:, 0]
    return np.asarray(normaliser - values[np.arange(len(targets)), targets])


def _sums(places: npt.NDArray[Any], weights: Floats, count: int) -> Floats:
    """Return (B, count) sums of the (B, N) weights that lie at each place; `places` is (N,) or (B, N)."""
    lines = np.arange(len(weights))[:, None] * count
    found = np.bincount((lines + places).ravel(), weights.ravel(), lines.size * count)
    return np.asarray(found, dtype=np.float64).reshape(-1, count)


def _classification(scores: Floats, targets: npt.NDArray[Any]) -> dict[str, Metric]:
    predicted = scores.argmax(1)
    hit = (predicted == targets) + 0.0
    metrics: dict[str, Metric] = {"top1": lambda w: w @ hit / w.sum(1)}
    if scores.shape[1] > 5:
        among = np.concatenate([_among_five(scores[piece], targets[piece]) for piece in _pieces(len(scores))])
        metrics["top5"] = lambda w: w @ among / w.sum(1)
    confidence = np.concatenate([_softmax(scores[piece]).max(1) for piece in _pieces(len(scores))])
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    metrics["balanced_accuracy"] = lambda w: _balanced(predicted, targets, w)
    metrics["macro_f1"] = lambda w: _macro_f1(predicted, targets, w)
    metrics["ece"] = _CalibrationError(bins, hit, confidence)
    return metrics


@dataclass(frozen=True, slots=True, eq=False)
class _CalibrationError:
    """The metric `ece`, and what its interval needs."""

    bins: npt.NDArray[np.intp]
    """(N,) bin of each row's confidence."""
    hit: Floats
    confidence: Floats

    def __call__(self, weights: Floats) -> Floats:
        return np.asarray(np.abs(self.gaps(weights)).sum(1))

    def gaps(self, weights: Floats) -> Floats:
        """Return (B, bins) differences of accuracy and confidence in each bin, times its share of the (B, N) weights."""
        gaps = _sums(self.bins, weights * (self.hit - self.confidence), BINS)
        return np.asarray(gaps / weights.sum(1, keepdims=True))

    def interval(self, gaps: Floats, units: int) -> Interval:
        """Return the interval from (D, bins) gaps of the draws of so many groups."""
        if units < 2:
            return SHARE
        own = self.gaps(np.ones((1, len(self.hit))))
        draws, noise = np.abs(gaps).sum(1), np.abs(gaps - own).sum(1)
        return norm_interval(float(np.abs(own).sum()), draws, noise, slack=self._slack(units, draws))

    def _slack(self, units: int, draws: Floats) -> float:
        """Return how uncertain the share of right rows is, where no draw shows it: all are right or wrong, or draws are equal."""
        low, high = proportion_interval(float(self.hit.mean()), units)
        hidden = self.hit.min() == self.hit.max() or np.ptp(draws) < 1e-12
        return high - low if hidden else 0.0


def _among_five(scores: Floats, targets: npt.NDArray[Any]) -> Floats:
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    return np.asarray(((scores > own).sum(1) < 5) + 0.0)


def _balanced(predicted: npt.NDArray[Any], targets: npt.NDArray[Any], weights: Floats) -> Floats:
    classes = int(targets.max()) + 1
    right = _sums(targets, weights * (predicted == targets), classes)
    return _mean_ratio(right, _sums(targets, weights, classes))


def _macro_f1(predicted: npt.NDArray[Any], targets: npt.NDArray[Any], weights: Floats) -> Floats:
    classes = int(max(predicted.max(), targets.max())) + 1
    right = _sums(targets, weights * (predicted == targets), classes)
    return _mean_ratio(2 * right, _sums(targets, weights, classes) + _sums(predicted, weights, classes))


def _mean_ratio(parts: Floats, wholes: Floats) -> Floats:
    """Return (B,) means over the classes of which there is any weight."""
    known = wholes > 0
    ratios = np.divide(parts, wholes, out=np.zeros_like(parts), where=known)
    return np.asarray(ratios.sum(1) / known.sum(1))


def _recalls(predicted: npt.NDArray[Any], targets: npt.NDArray[Any], classes: int) -> list[float | None]:
    total = np.bincount(targets, minlength=classes)
    right = np.bincount(targets, predicted == targets, classes)
    return [float(right[c] / total[c]) if total[c] else None for c in range(classes)]


def _multilabel(scores: Floats, targets: npt.NDArray[Any]) -> dict[str, Metric]:
    scores = np.asarray(scores, dtype=np.float64)
    ranked = [_Ranking.of(scores[:, k], targets[:, k]) for k in range(targets.shape[1])]

    def over_labels(of_counts: Callable[[Floats, Floats], float]) -> Metric:
        def mean(weights: Floats) -> float:
            counts = [ranking.counts(weights) for ranking in ranked]
            values = [of_counts(right, wrong) for right, wrong in counts if right.any() and wrong.any()]
            return float(np.mean(values)) if values else float("nan")

        return _each(mean)

    return {"mean_average_precision": over_labels(_average_precision), "macro_auroc": over_labels(_auroc)}


def _each(value: Callable[[Floats], float]) -> Metric:
    """Return the metric that has this value for (N,) weights."""
    return lambda weights: np.array([value(one) for one in weights])


@dataclass(frozen=True, slots=True, eq=False)
class _Ranking:
    """The rows of one label by falling score: sorted once, counted anew for every draw."""

    order: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]
    """Place in the order at which a new score begins: rows of equal score count together."""
    positive: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, scores: Floats, targets: npt.NDArray[Any]) -> _Ranking:
        order = np.argsort(-scores, kind="stable")
        fresh = np.diff(scores[order], prepend=np.inf) != 0
        return cls(order, np.flatnonzero(fresh), targets[order] > 0)

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the weight of positives and of negatives at every distinct score, highest first."""
        sorted_weights = weights[self.order]
        right = np.where(self.positive, sorted_weights, 0.0)
        return np.add.reduceat(right, self.starts), np.add.reduceat(sorted_weights - right, self.starts)


def _average_precision(right: Floats, wrong: Floats) -> float:
    found = right.cumsum()
    precision = found / np.maximum(found + wrong.cumsum(), np.finfo(float).tiny)
    return float(precision @ right / found[-1])


def _auroc(right: Floats, wrong: Floats) -> float:
    above = right.cumsum() - right / 2  # an equal score is half a win
    return float(above @ wrong / (right.sum() * wrong.sum()))


def _regression(scores: Floats, targets: npt.NDArray[Any]) -> dict[str, Metric]:
    values, scores = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    squares, distances = np.square(scores - values), np.abs(scores - values).mean(1)

    def r2(weights: Floats) -> float:
        spread = weights @ np.square(values - weights @ values / weights.sum())
        return float(np.mean(1 - weights @ squares / spread)) if (spread > 0).all() else float("nan")

    return {"r2": _each(r2), "mae": lambda w: w @ distances / w.sum(1)}


METRICS: dict[Task, Callable[[Floats, npt.NDArray[Any]], dict[str, Metric]]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "regression": _regression,
}


def _softmax(scores: Floats) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    powers = np.exp(values - values.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
