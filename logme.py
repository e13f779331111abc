"""LogME: the log evidence that a Bayesian linear model on frozen features explains the targets.

Sources: You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021;
You et al., "Ranking and Tuning Pre-trained Models", JMLR 2022.
For every target column y (N,) of the features F (N, D), with no bias and no centring:

    y | w ~ Normal(F w, I / beta),  w ~ Normal(0, I / alpha),  A = alpha I + beta F'F,  m = beta A^-1 F'y
    log evidence = (D ln alpha + N ln beta - ln det A - beta |F m - y|^2 - alpha |m|^2 - N ln 2 pi) / 2

alpha and beta maximise it; the score is the mean over the columns of (log evidence / N), higher is better.
It depends on N, F'F, F'Y and |y|^2 alone: `Moments` collects these, `LogME` solves all columns at once.
In shapes: B rows of a batch, N rows in all, D feature width, K target columns, k kept directions.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from warnings import warn

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

MAX_STEPS, GUARD = 11, 1e-5  # both papers add the guard to |m|^2 and |F m - y|^2 in the updates
RULES = {"fixed_point": (1e-3, 0.0), "evidence": (float(np.nextafter(1e-2, 0)), GUARD)}  # stop at; last guard
CHOICES = {
    "task": ("classification", "multilabel", "regression"),
    "algorithm": tuple(RULES),
    "variant": ("corrected", "reference"),
}
STATE = ("task", "gram", "sums", "counts", "folded", "peak", "rows", "row_targets")
BLOCK_ROWS, BLOCK_BYTES = 4096, 2**25  # the float64 copy of a block stays below both


class LogMEError(ValueError):
    """An input that LogME cannot score; the message says what was seen and what to give instead."""


class LogMEWarning(UserWarning):
    """A score that exists but means less than it seems."""


class Moments:
    """Sufficient statistics of features (N, D) and K target columns, in float64, in O(D^2 + D K) memory.

    Up to D rows are held as they are, since N <= D is solved from the features themselves (squaring them
    costs half the digits); more are folded into the Gram matrix. Batching changes round-off only.
    """

    def __init__(self, width: int, num_targets: int, *, task: str = "classification") -> None:
        """Start empty: `width` is D, `num_targets` is K (classification: one more than the largest label)."""
        _check_choices(task=task)
        if width < 1 or num_targets < 1:
            raise LogMEError(f"width and num_targets must be at least 1, got {width} and {num_targets}")
        self.width, self.num_targets, self.task = int(width), int(num_targets), task
        self._folded = 0  # rows inside the products F'F, Y'F, |y|^2; the rest is held as rows
        self._products = [np.zeros((width, width)), np.zeros((num_targets, width)), np.zeros(num_targets)]
        self._rows, self._row_targets = np.empty((0, width)), _targets(np.zeros((0, num_targets)), task)
        self._peak = 0.0  # largest trace ever subtracted from: below its round-off nothing counts in the rank

    @classmethod
    def of(cls, features: ArrayLike, targets: ArrayLike, *, task: str = "classification") -> Self:
        """Collect features (N, D), lazy arrays slice by slice; K as in the targets; raises like `update`."""
        source: Any = features if hasattr(features, "shape") else np.asarray(features)
        columns = _targets(targets, task)
        blocks = _blocks(source, columns)
        num_targets = columns.shape[1] if columns.ndim == 2 else int(columns.max(initial=0)) + 1
        moments = cls(source.shape[1], num_targets, task=task)
        buffer = np.empty((blocks[0].stop, moments.width))  # one for all: fresh pages cost as much as the cast
        for rows in blocks:
            block = np.asarray(source[rows])
            _check_finite(block, "features", rows.start)
            buffer[: len(block)] = block
            moments._take(buffer[: len(block)], columns[rows])
        return moments

    @property
    def n(self) -> int:
        """Number of rows, N."""
        return self._folded + len(self._rows)

    @property
    def gram(self) -> FloatArray:
        """F'F, (D, D)."""
        return np.asarray(self._products[0] + self._rows.T @ self._rows)

    @property
    def sums(self) -> FloatArray:
        """Y'F, (K, D); in classification row c is the sum of the features of class c."""
        return self._products[1] + self._target_products(self._rows, self._row_targets)[0]

    @property
    def counts(self) -> FloatArray:
        """|y|^2 of each target column, (K,); in classification the number of rows of each class."""
        return self._products[2] + self._target_products(self._rows, self._row_targets)[1]

    def update(self, features: ArrayLike, targets: ArrayLike) -> Self:
        """Add rows: features (B, D) of any real dtype and their targets (B,) or (B, K).

        Raises LogMEError, before anything is added, on NaN or infinity (naming the column and the row,
        counted over all updates), on other widths or lengths, and on labels that are no integers in [0, K).
        """
        batch, columns = np.asarray(features), _targets(targets, self.task, self.n)
        blocks = _blocks(batch, columns)
        if batch.shape[1] != self.width or columns.shape[1:] not in ((), (self.num_targets,)):
            fit, got = (self.width, self.num_targets), f"{batch.shape} with targets {columns.shape}"
            raise LogMEError(f"moments of (width, num_targets) {fit} cannot take rows {got}")
        if columns.ndim == 1 and columns.max(initial=0) >= self.num_targets:
            worst = f"label {columns.max()} in row {self.n + columns.argmax()}"
            raise LogMEError(f"{worst} is outside the {self.num_targets} classes; give a larger num_targets")
        _check_finite(batch, "features", self.n)
        for rows in blocks:
            self._take(batch[rows], columns[rows])
        return self

    def add(self, gram: ArrayLike, sums: ArrayLike, counts: ArrayLike, *, n: int | None = None) -> Self:
        """Add products of N more rows, made elsewhere (on a GPU, for example).

        gram (D, D) is F'F, sums (K, D) is Y'F, counts (K,) is |y|^2 of each column: the class counts in
        classification, where N is their sum; otherwise give `n`. Raises LogMEError if anything does not fit.
        """
        parts = [np.asarray(part, dtype=np.float64) for part in (gram, sums, counts)]
        for name, part, own in zip(STATE[1:4], parts, self._products, strict=True):
            if part.shape != own.shape:
                raise LogMEError(f"{name} has shape {part.shape}, these moments need {own.shape}")
            _check_finite(part.reshape(len(part), -1), name)
        labels, total = self.task == "classification", float(parts[2].sum())
        rows = int(total) if labels and n is None else n
        if rows is None or rows < 0 or parts[2].min() < 0 or (labels and rows != total):
            raise LogMEError(f"n must be the number of rows (for labels, the {total:g} of counts), got {n}")
        self._shift(parts, rows)
        return self

    def merge(self, other: "Moments") -> Self:
        """Add all rows of `other`, which stays as it is. Raises LogMEError on another width, K or task."""
        self._check_kind(other)
        self._shift(other._products, other._folded)
        self._peak = max(self._peak, other._peak)
        self._take(other._rows, other._row_targets)
        return self

    def subtract(self, other: "Moments") -> Self:
        """Take away the rows of `other`, added here before; raises LogMEError if that cannot be."""
        self._check_kind(other)
        if other.n > self.n or (self.counts - other.counts).min() < -1e-9 * (1 + self.counts.max()):
            raise LogMEError(f"cannot subtract {other.n} rows that are not all among these {self.n} rows")
        self._fold()
        self._peak = max(self._peak, other._peak, float(np.trace(self._products[0])))
        self._shift([-other.gram, -other.sums, -other.counts], -other.n)
        np.maximum(self._products[2], 0, out=self._products[2])
        return self

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything as plain arrays, for `np.savez` or a store; no Gram while all rows are held."""
        products = [self._products[0][: self.width if self._folded else 0], *self._products[1:]]
        parts = (self.task, *products, self._folded, self._peak, self._rows, self._row_targets)
        return {name: np.array(part) for name, part in zip(STATE, parts, strict=True)}

    @classmethod
    def from_state(cls, state: Mapping[str, ArrayLike]) -> Self:
        """Rebuild from what `state` gave; raises LogMEError if an array is missing or does not fit."""
        if missing := [name for name in STATE if name not in state]:
            raise LogMEError(f"this is no state of Moments: {', '.join(missing)} missing")
        task, gram, sums, counts, folded, peak, rows, targets = (np.asarray(state[name]) for name in STATE)
        moments = cls(*np.atleast_2d(sums).shape[::-1], task=str(task))
        moments._peak = float(peak)
        if folded > 0:
            moments.add(gram, sums, counts, n=int(folded))
        return moments.update(rows, targets)

    def _check_kind(self, other: "Moments") -> None:
        mine, theirs = ((m.task, m.width, m.num_targets) for m in (self, other))
        if mine != theirs:
            raise LogMEError(f"moments of (task, width, num_targets) {theirs} do not fit moments of {mine}")

    def _shift(self, parts: Sequence[FloatArray], rows: int) -> None:
        for own, part in zip(self._products, parts, strict=True):
            own += part
        self._folded += rows

    def _take(self, rows: NDArray[Any], targets: NDArray[Any]) -> None:
        """Hold at most D rows (copies: the caller may reuse the buffer), else fold what is held and these."""
        if len(self._rows) + len(rows) > self.width:
            return self._fold((np.asarray(rows, dtype=np.float64), targets))
        self._rows = np.concatenate([self._rows, rows], dtype=np.float64)
        self._row_targets = np.concatenate([self._row_targets, targets])

    def _fold(self, *more: tuple[FloatArray, NDArray[Any]]) -> None:
        for rows, targets in ((self._rows, self._row_targets), *more):
            if len(rows):
                self._shift([rows.T @ rows, *self._target_products(rows, targets)], len(rows))
        self._rows, self._row_targets = self._rows[:0], self._row_targets[:0]

    def _target_products(self, rows: FloatArray, targets: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """Y' rows (K, W) and |y|^2 (K,) of rows (B, W); grouping by label beats a product with one-hot."""
        if self.task != "classification":
            return targets.T @ rows, (targets * targets).sum(axis=0)
        counts = np.bincount(targets, minlength=self.num_targets)
        sums = np.zeros((self.num_targets, rows.shape[1]))
        order, stops = np.argsort(targets, kind="stable"), np.cumsum(counts)
        for label in np.flatnonzero(counts):
            rows[order[stops[label] - counts[label] : stops[label]]].sum(axis=0, out=sums[label])
        return sums, counts.astype(np.float64)

    def _factorise(self, published: bool) -> tuple[FloatArray, FloatArray, FloatArray]:
        """F = U S V' -> S (k,), V' (k, D), U'Y (k, K), from the rows while N <= D, else from the Gram."""
        limit = np.finfo(np.float64).eps * max(self.n, self.width)
        if not self._folded:
            left, singular, basis = np.linalg.svd(self._rows, full_matrices=False)
            kept = singular > (-1 if published else limit * singular[0])
            return singular[kept], basis[kept], self._target_products(left[:, kept], self._row_targets)[0].T
        self._fold()
        if published:
            _, squared, basis = np.linalg.svd(self._products[0])
            kept = (np.sqrt(squared) > 1e-10) & (np.arange(self.width) < self.n)
        else:
            values, vectors = np.linalg.eigh(self._products[0])
            squared, basis = values[::-1], vectors.T[::-1]
            kept = squared > limit * max(squared[0], self._peak)  # not S: round-off is relative to S^2
        singular, basis = np.sqrt(squared[kept]), basis[kept]
        return singular, basis, (basis @ self._products[1].T) / singular[:, None]


@dataclass(kw_only=True, eq=False)
class LogME:
    """Bayesian linear model whose evidence ranks features; fit it on the training split.

    After fit, by column: evidence_ (log evidence / N), alpha_, beta_, gamma_ (effective dimensions), n_iter_,
    converged_ (False after 11 steps), all (K,), weights_ (K, D), classes_ (K,), its label or index; for the
    features score_ (mean of evidence_), rank_ (k), condition_ (ratio of kept singular values), scale_. Rare
    classes are easy to explain: see evidence_. On exactly linear targets beta_ saturates near N / 1e-5.
    """

    task: str = "classification"
    """Labels int (N,) or one-hot (N, K); or "multilabel" 0/1 (N, K), "regression" float (N,) or (N, K)."""
    algorithm: str = "fixed_point"
    """"fixed_point" (2022) or "evidence" maximisation (2021)."""
    variant: str = "corrected"
    """Or "reference", to reproduce published numbers: D ln alpha against a determinant over k directions,
    singular values below 1e-10 dropped whatever the scale, labels that never occur scored as columns."""
    rescale: bool = False
    """Divide by scale_, the root mean square of the features: the guard is not scale-free, so else the score
    depends on their unit. alpha_ then speaks of the divided features, weights_ still of those given."""

    def __post_init__(self) -> None:
        _check_choices(task=self.task, algorithm=self.algorithm, variant=self.variant)

    def fit(self, features: ArrayLike, targets: ArrayLike) -> Self:
        """Fit features (N, D) of any real dtype and targets as `task` says; earlier results are replaced.

        Raises LogMEError on NaN or infinity (naming row and column), N < 2, labels negative or no integers.
        Warns with LogMEWarning on one class only, labels without rows, target columns or features of zeros.
        """
        return self.fit_moments(Moments.of(features, targets, task=self.task))

    def fit_moments(self, moments: Moments) -> Self:
        """Fit streamed moments; the same results, errors and warnings as `fit` on the rows they saw."""
        if moments.task != self.task:
            raise LogMEError(f"moments of a {moments.task} task do not fit LogME(task={self.task!r})")
        if moments.n < 2:
            raise LogMEError(f"LogME needs at least 2 rows, got {moments.n}")
        if not np.isfinite(energy := float(np.trace(moments.gram))):
            raise LogMEError("squares of the features overflow; divide the features by a constant first")
        self.classes_ = _columns(moments, self.variant)
        published = self.variant == "reference" and self.algorithm == "fixed_point"
        singular, basis, coordinates = moments._factorise(published)
        if not singular.any():
            warn(LogMEWarning("degenerate: features of zeros, or below the threshold: -inf"), stacklevel=3)
            singular, basis, coordinates = singular[:0], basis[:0], coordinates[:0]
        self.rank_ = int(singular.size)
        self.scale_ = float(np.sqrt(energy / moments.n / moments.width)) or 1.0 if self.rescale else 1.0
        dims = moments.width if published else self.rank_
        columns = coordinates[:, self.classes_], moments.counts[self.classes_]
        self.weights_ = self._solve(moments.n, dims, singular / self.scale_, *columns) @ basis / self.scale_
        return self

    def predict(self, features: ArrayLike) -> NDArray[Any]:
        """(N, D) -> labels (N,) of the first best score, or scores (N, K); LogMEError if not fitted."""
        if not hasattr(self, "weights_"):
            raise LogMEError("this LogME is not fitted; call fit(features, targets) or fit_moments(moments)")
        batch = np.asarray(features)
        if batch.ndim != 2 or batch.shape[1] != self.weights_.shape[1]:
            raise LogMEError(f"features must be (N, {self.weights_.shape[1]}) as in fit, got {batch.shape}")
        _check_finite(batch, "features")
        scores: FloatArray = batch.astype(np.float64) @ self.weights_.T
        return self.classes_[scores.argmax(axis=1)] if self.task == "classification" else scores

    @np.errstate(divide="ignore", invalid="ignore")  # alpha = 0 when there is no direction
    def _solve(self, n: int, dims: int, s: FloatArray, uy: FloatArray, yy: FloatArray) -> FloatArray:
        """From S (k,), U'Y (k, K), |y|^2 (K,): alpha and beta, each column until its own ratio settles.

        As published, the evidence takes alpha and beta from after the last update, |m|^2 (`weight`),
        |F m - y|^2 (`error`) and m from before it. `dims` multiplies ln alpha. Returns (V'm)', (K, k).
        """
        squared, energy = s**2, uy**2
        outside = np.maximum(yy - energy.sum(axis=0), 0) * (n > s.size)  # |y - U U'y|^2, none if U is square
        alpha, beta, ratio, gamma, weight, error = np.ones((6, yy.size))
        steps, converged = self.n_iter_, self.converged_ = np.zeros(yy.size, int), np.zeros(yy.size, bool)
        tolerance, guard = RULES[self.algorithm]
        for _ in range(MAX_STEPS):
            active = np.flatnonzero(~converged & (alpha > 0))
            t = alpha[active] / beta[active]
            shrink = 1 / (squared[:, None] + t)
            spread = energy[:, active] * shrink**2
            ratio[active], gamma[active], weight[active] = t, squared @ shrink, squared @ spread
            error[active] = t**2 * spread.sum(axis=0) + outside[active]
            alpha[active] = gamma[active] / (weight[active] + GUARD)
            beta[active] = (n - s.size + t * shrink.sum(axis=0)) / (error[active] + GUARD)  # N - gamma
            converged[active] = np.abs(alpha[active] / beta[active] - t) <= tolerance * t
            steps[active] += 1
        log_det = np.log(alpha + beta * squared[:, None]).sum(axis=0)
        fit = log_det + beta * (error + guard) + alpha * (weight + guard)
        evidence = (dims * np.log(alpha) + n * np.log(beta / (2 * np.pi)) - fit) / (2 * n)
        self.evidence_ = np.where(alpha > 0, evidence, -np.inf)
        self.score_, self.condition_ = float(self.evidence_.mean()), float(s[0] / s[-1]) if s.size else np.inf
        self.alpha_, self.beta_, self.gamma_ = alpha, beta, gamma
        return np.asarray((s[:, None] / (squared[:, None] + ratio) * uy).T)


def logme(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    task: str = "classification",
    algorithm: str = "fixed_point",
    variant: str = "corrected",
    rescale: bool = False,
) -> float:
    """Score features (N, D) against targets; options, targets, errors and warnings are those of `LogME`."""
    model = LogME(task=task, algorithm=algorithm, variant=variant, rescale=rescale)
    return model.fit(features, targets).score_


def _columns(moments: Moments, variant: str) -> NDArray[np.int64]:
    """Indices of the target columns to score, with a warning about those that say nothing."""
    everything, used = np.arange(moments.num_targets), np.flatnonzero(moments.counts)
    labels, corrected = moments.task == "classification", variant == "corrected"
    if labels and used.size == 1:
        warn(LogMEWarning(f"all {moments.n} rows are of one class ({used[0]}): no separation"), stacklevel=4)
    if empty := np.setdiff1d(everything, used).tolist():
        fate = "left out" if labels and corrected else "zero everywhere, which inflates the score"
        message = f"{'classes without rows' if labels else 'target columns'} {empty}: {fate}"
        warn(LogMEWarning(message), stacklevel=4)
    return everything if not labels else used if corrected else everything[: used[-1] + 1]


def _check_choices(**options: str) -> None:
    for option, value in options.items():
        if value not in CHOICES[option]:
            raise LogMEError(f"{option}={value!r} is unknown; choose one of {', '.join(CHOICES[option])}")


def _targets(targets: ArrayLike, task: str, first_row: int = 0) -> NDArray[Any]:
    """Labels (N,) int64 in classification, else columns (N, K) float64."""
    _check_choices(task=task)
    array = np.asarray(targets)
    if array.ndim not in (1, 2) or array.dtype.kind not in "biuf":
        raise LogMEError(f"targets must be numbers, (N,) or (N, K), got {array.dtype} {array.shape}")
    columns = array if array.ndim == 2 else array[:, None]
    _check_finite(columns, "targets", first_row)
    one_hot = task == "classification" and array.ndim == 2
    if (one_hot or task == "multilabel") and not np.isin(columns, (0, 1)).all():
        raise LogMEError(f"{task} targets (N, K) must be 0 or 1; use task='regression' for other values")
    if one_hot and (columns.sum(axis=1) != 1).any():
        raise LogMEError("classification targets (N, K) must be one-hot; or use task='multilabel'")
    if task != "classification" or one_hot:
        return np.asarray(columns.argmax(axis=1)) if one_hot else columns.astype(np.float64)
    if array.dtype.kind not in "iu":
        raise LogMEError(f"labels must be integers, got {array.dtype}; use astype(int), or task='regression'")
    if array.min(initial=0) < 0:
        raise LogMEError(f"label {array.min()} in row {first_row + int(array.argmin())} is negative")
    return array.astype(np.int64)


def _check_finite(array: NDArray[Any], name: str, first_row: int = 0) -> None:
    if array.dtype.kind not in "biuf":
        raise LogMEError(f"{name} must be real numbers, got {array.dtype}")
    finite = np.isfinite(array)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise LogMEError(f"{name}: {array[row, column]} in row {first_row + row}, column {column} (from 0)")


def _blocks(features: Any, targets: NDArray[Any]) -> list[slice]:
    """Slices over the rows of features (N, D), after the check that there is one target for each."""
    shape, rows = tuple(features.shape), len(targets)
    if len(shape) != 2 or shape[0] != rows or shape[1] < 1:
        raise LogMEError(f"features must be (N, D) with a target for each row, got {shape}, {rows} targets")
    step = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (8 * shape[1])))
    return [slice(start, start + step) for start in range(0, max(rows, 1), step)]


if __name__ == "__main__":
    import cli

    cli.score_model(sys.argv[1:])
