"""Random features and targets for the tests of LogME, and when two fits are the same."""

from typing import Any

import numpy as np

from logme import LogME

Array = np.ndarray[Any, Any]
RESULTS = ("evidence_", "alpha_", "beta_", "gamma_", "weights_", "n_iter_", "converged_", "classes_")


def classes(rows: int = 120, width: int = 12, count: int = 4, seed: int = 0) -> tuple[Array, Array]:
    """Noisy class-structured features (rows, width), labels (rows,) in which every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(count), rng.integers(0, count, rows - count)])
    return rng.normal(size=(count, width))[labels] + rng.normal(size=(rows, width)), labels


def values(rows: int = 120, width: int = 12, columns: int = 3, seed: int = 0) -> tuple[Array, Array]:
    """Features (rows, width) and noisy linear targets (rows, columns)."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, width))
    return features, features @ rng.normal(size=(width, columns)) + rng.normal(size=(rows, columns))


def assert_same(one: LogME, other: LogME, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(one.score_, other.score_, rtol=rtol)
    for name in RESULTS:
        expected = getattr(other, name)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(getattr(one, name), expected, rtol=rtol, atol=rtol * scale, err_msg=name)
