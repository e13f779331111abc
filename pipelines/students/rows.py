"""Which rows a student learns from: a stable part of the training rows, or the draw of the published code; and for how long."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from featurecache.seeding import unit_interval

Rows = npt.NDArray[np.int64]

PUBLISHED_SEED, PUBLISHED_VAL = 42, 0.1


def published_split(count: int, train_frac: float, use_val: bool) -> tuple[list[int], list[int]]:
    """Return (training, validation) places among `count` training samples, as the published code of AFT draws them.

    Its generator starts at 42 whatever the seed; validation, where it is used, is 10 % (aft.md, section 5).
    """
    val = PUBLISHED_VAL if use_val else 0.0
    train = min(train_frac, 1 - val)
    sizes = [math.floor(count * share) for share in (train, val, max(0.0, 1 - train - val))]
    for part in range(count - sum(sizes)):  # what rounding left goes round
        sizes[part % len(sizes)] += 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(PUBLISHED_SEED)).tolist()
    return order[: sizes[0]], order[sizes[0] : sizes[0] + sizes[1]]


def part_of(rows: Rows, classes: npt.NDArray[np.int64], ids: list[str], fraction: float, seed: int) -> Rows:
    """Return that fraction of some rows, of each class alike, at least one; ascending.

    A digest of the sample id decides, so that a larger fraction holds the rows of a smaller one.
    """
    if fraction >= 1:
        return rows
    draws = np.array([unit_interval(ids[row], "train fraction", seed) for row in rows])
    kept = []
    for one in np.unique(classes):
        own = rows[classes == one]
        count = max(1, round(fraction * len(own)))
        kept.append(own[np.argsort(draws[classes == one], kind="stable")[:count]])
    return np.sort(np.concatenate(kept))


def whole_epochs(steps: int, rows: int, batch_size: int) -> int:
    """Return the epochs nearest to a number of steps, half of one rounded up: the published code trains whole epochs only."""
    return int(steps / math.ceil(rows / batch_size) + 0.5)
