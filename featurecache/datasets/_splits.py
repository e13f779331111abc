"""Splits drawn from digests: stable when samples are added, the same on every machine, no group divided."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurecache.seeding import unit_interval

TEST_SHARE, VAL_SHARE = 0.2, 0.1


def automatic(keys: Sequence[str], classes: npt.NDArray[np.int64], seed: int) -> list[str]:
    """Return train, val or test for every labelled sample, "" for the others.

    `keys` are sample ids, or group keys where samples must not be separated. A class keeps at least one key in train:
    where all of its keys are drawn, the one drawn last, which may therefore move when the class grows. No other key ever
    moves.
    """
    split = ["train" if c >= 0 else "" for c in classes]
    draw_from(split, "train", "test", keys, classes, seed, TEST_SHARE)
    draw_from(split, "train", "val", keys, classes, seed, VAL_SHARE)
    return split


def draw_from(
    split: list[str],
    source: str,
    into: str,
    keys: Sequence[str],
    classes: npt.NDArray[np.int64],
    seed: int,
    share: float,
) -> None:
    """Move the keys whose digest falls below `share` from `source` to `into`; the last key of a class stays."""
    members = [i for i, name in enumerate(split) if name == source]
    draws = {key: unit_interval(key, "split", into, seed) for key in {keys[i] for i in members}}
    of_class: dict[int, set[str]] = defaultdict(set)
    for i in members:
        of_class[int(classes[i])].add(keys[i])
    kept = {max(found, key=lambda key: (draws[key], key)) for found in of_class.values()}
    for i in members:
        if draws[keys[i]] < share and keys[i] not in kept:
            split[i] = into
