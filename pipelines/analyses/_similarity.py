"""Minibatch CKA with the unbiased estimator, and what is read from its matrix.

Nguyen, Raghu & Kornblith, Do Wide and Deep Networks Learn the Same Things?, ICLR 2021, with the estimator of HSIC of
Song et al., 2012. Everything is in float64: products of attention maps reach 1e7.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.errors import ConfigError

Matrix = npt.NDArray[np.float64]

SMALLEST = 4
"""Samples of a batch, at least: the estimator divides by n - 3."""


def gram(values: Tensor) -> Tensor:
    """(n, ...) -> (n, n) float64 inner products of samples, with a zero diagonal.

    Raises:
        ConfigError: fewer than four samples.
    """
    if len(values) < SMALLEST:
        raise ConfigError([f"the unbiased estimator needs batches of at least {SMALLEST} samples, got {len(values)}"])
    rows = values.flatten(1).double()
    return (rows @ rows.T).fill_diagonal_(0)


def hsic(one: Tensor, other: Tensor) -> Tensor:
    """Return the unbiased estimate from two (n, n) matrices of `gram`; it may be negative."""
    n = len(one)
    sums = one.sum() * other.sum() / ((n - 1) * (n - 2))
    return ((one * other).sum() + sums - 2 * one.sum(0) @ other.sum(0) / (n - 2)) / (n * (n - 3))


class MinibatchCKA:
    """Similarities of L representations of the same samples, from any number of batches."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None
        self.batches = 0

    def update(self, layers: Sequence[Tensor]) -> None:
        """Add a batch: (n, ...) of every representation, of whatever shape; n may differ from batch to batch."""
        grams = [gram(values).cpu() for values in layers]
        found = torch.stack([torch.stack([hsic(one, other) for other in grams]) for one in grams])
        self.sum = found if self.sum is None else self.sum + found
        self.batches += 1

    def matrix(self) -> Matrix:
        """(L, L): ratio of averages over the batches; NaN for what is constant, or varies less than its estimate's error."""
        assert self.sum is not None, "update comes first"
        means = (self.sum / self.batches).numpy()
        own = np.diag(means)
        with np.errstate(invalid="ignore"):
            scale = np.sqrt(np.where(own > 0, own, np.nan))
        return np.asarray(means / np.outer(scale, scale), np.float64)


def without_diagonal(matrix: Matrix) -> Matrix:
    """Return the matrix with zeros on its diagonal, where every layer is like itself."""
    return np.asarray(np.where(np.eye(len(matrix), dtype=bool), 0, matrix), np.float64)


def summary(matrix: Matrix) -> dict[str, list[float] | float]:
    """Return means of a layer's similarity to the others, and of how it changes from one layer to the next.

    `mean` of all pairs, `layer_mean` of each layer; of the sizes of first and second differences along a row,
    `change_mean`, `change_std`, `change2_mean`, `change2_std` of each; NaN where there are too few layers.
    """
    count = len(matrix)
    others = without_diagonal(matrix)
    first = np.abs(np.diff(matrix, axis=1))
    second = np.abs(np.diff(first, axis=1))
    return {
        "mean": _mean(others.sum(keepdims=True), count * (count - 1))[0],
        "layer_mean": _mean(others.sum(1), count - 1),
        **{f"change{order}_mean": _mean(found.sum(1), found.shape[1]) for order, found in (("", first), (2, second))},
        **{f"change{order}_std": _deviation(found) for order, found in (("", first), (2, second))},
    }  # fmt: skip


def _mean(sums: Matrix, count: int) -> list[float]:
    return [float(value) / count if count > 0 else float("nan") for value in sums.ravel()]


def _deviation(rows: Matrix) -> list[float]:
    """Return the unbiased deviation of each row."""
    return rows.std(1, ddof=1).tolist() if rows.shape[1] > 1 else [float("nan")] * len(rows)
