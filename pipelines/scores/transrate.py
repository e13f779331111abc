"""TransRate: how much shorter a code of the features, to a fixed distortion, gets by knowing the class; higher is better.

With Z the centred features (N, D) and Z_c those of class c (centred as a whole, not by class),

    R(Z) = ln det(I + Z'Z / (N eps)) / 2,    TransRate = R(Z) - sum over c of (N_c / N) R(Z_c)

in nats. The rate depends on the unit of the features, so they are first scaled to a total variance of one, by which layers and
backbones can be compared: eps is the distortion as a share of that. Classes weigh by their rows (the published listing
averages over classes, which is the same where they are equally large).
"""

from __future__ import annotations

import numpy as np

from pipelines.scores._rows import Floats, Places, Rows

CONSUMES = "features"
TASKS = ("classification",)
PAPER = "Huang et al., ICML 2022"

EPSILON = 1e-4
"""Distortion, the paper's value."""


def score(rows: Rows) -> float:
    """Return TransRate of features (N, D); two passes, the second class by class, memory D^2 whatever N and K."""
    spread = rows.spread
    variance = float(np.trace(spread.covariance))
    if variance <= 0:
        return 0.0
    whole = _log_det(spread.covariance / variance)
    classes = [np.flatnonzero(rows.targets == label) for label in np.unique(rows.targets)]
    within = sum(len(places) * _log_det(_products(rows, places) / (variance * len(places))) for places in classes)
    return (whole - within / len(rows)) / 2


def _log_det(products: Floats) -> float:
    """Return ln det(I + products / eps) of a positive semi-definite matrix."""
    return float(np.linalg.slogdet(np.eye(len(products)) + products / EPSILON)[1])


def _products(rows: Rows, places: Places) -> Floats:
    """Return Z'Z (D, D) of some rows, or Z Z' where they are fewer than D: both have the same determinant above."""
    if len(places) < rows.width:
        values = np.concatenate([values for values, _ in rows.pieces(places)]) - rows.spread.mean
        return np.asarray(values @ values.T)
    products = np.zeros((rows.width, rows.width))
    for values, _ in rows.pieces(places):
        centred = values - rows.spread.mean
        products += centred.T @ centred
    return products
