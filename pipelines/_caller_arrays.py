"""Features and labels as callers of the estimator have them, checked as scikit-learn checks them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import issparse
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, column_or_1d, validate_data
from torch import Tensor

from featurecache.checks import check
from featurecache.errors import ConfigError


def read_labels(y: Any, rows: int) -> npt.NDArray[Any]:
    """Return (N,) labels of classes: numbers, text or booleans.

    Raises:
        ConfigError: they are not one a row, of one class alone, not finite, or of no kind that names classes.
    """
    labels = _without_missing(y)
    if labels.ndim > 1 or not labels.ndim:
        labels = _refused(lambda: column_or_1d(labels, warn=True))
    check((len(labels) == rows, f"y must hold {rows} labels, one a row, got the shape {labels.shape}"))
    _refused(lambda: check_classification_targets(labels))
    check((len(np.unique(labels)) > 1, "all labels are of one class, so there is nothing to tell apart"))
    return labels


def _without_missing(y: Any) -> npt.NDArray[Any]:
    """Return labels as an array; numpy alone would make of a missing label among text one more class, called nan."""
    values = y if hasattr(y, "dtype") else np.asarray(y, dtype=object)
    problem = "Input y contains NaN: give every row its label, or leave the rows without one out"
    for value in np.asarray(values, dtype=object).ravel():
        if value is None or type(value).__name__ in ("NAType", "NaTType") or (_is_number(value) and math.isnan(value)):
            raise ConfigError([problem])
    labels = np.asarray(y)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ConfigError(["Input y contains infinity"])
    return labels


def _is_number(value: Any) -> bool:
    return isinstance(value, (float, np.floating))


def read_features(estimator: Any, X: Any, name: str, *, reset: bool) -> dict[str, Tensor]:
    """Return array name -> (N, ...) float32 of a mapping, or of one array, list or data frame, which is called `name`.

    `reset` notes the number and names of the features in the estimator; else they are compared with what it noted.

    Raises:
        ConfigError: values that are no numbers, not finite, or of other shapes; of a mapping lists every problem.
        TypeError: a sparse matrix.
    """
    if isinstance(X, Mapping) and not issparse(X):  # scipy has sparse matrices that are mappings
        return _of_mapping(X)
    if _count_dimensions(X) > 2:  # tokens (N, T, D), which scikit-learn has no features for
        return _of_mapping({name: X})
    values = _refused(lambda: validate_data(estimator, _on_cpu(X), reset=reset, dtype=np.float32))
    return {name: _tensor(values)}


def _of_mapping(X: Mapping[str, Any]) -> dict[str, Tensor]:
    problems, arrays = [], {}
    for name, given in X.items():
        try:
            values = check_array(_on_cpu(given), dtype=np.float32, allow_nd=True, ensure_all_finite=False)
        except (TypeError, ValueError) as error:
            problems.append(f"{name} does not hold numbers (N, D) with N > 0: {error}")
            continue
        arrays[name] = _tensor(values)
        if not arrays[name].isfinite().all():
            problems.append(f"{name} holds NaN or infinity")
    if len({len(values) for values in arrays.values()}) > 1:
        counts = ", ".join(f"{name} {len(values)}" for name, values in arrays.items())
        problems.append(f"the arrays have unequal numbers of rows: {counts}")
    if not X:
        problems.append("there is no array")
    if problems:
        raise ConfigError(problems)
    return arrays


def _on_cpu(values: Any) -> Any:
    return values.detach().cpu() if isinstance(values, Tensor) else values


def _tensor(values: npt.NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(
        np.require(values, requirements=["C", "W"])
    )  # a map of a file is copied, since it is read-only


def _count_dimensions(values: Any) -> int:
    if hasattr(values, "ndim"):
        return int(values.ndim)
    try:
        return np.asarray(values).ndim
    except ValueError:  # of unequal lengths: scikit-learn says so
        return 0


def _refused(act: Any) -> Any:
    """Return what a check of scikit-learn returns; its `ValueError` as one of ours."""
    try:
        return act()
    except ValueError as error:
        raise ConfigError([str(error)]) from error
