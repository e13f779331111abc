"""How much of a long run a test makes: all of it under `make faults`, which sets FEATURECACHE_FAULTS=all, else a sample."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

ALL = os.environ.get("FEATURECACHE_FAULTS") == "all"


def sampled(cases: Sequence[T], count: int) -> Sequence[T]:
    """Return every case of a long run, else about `count` of them, evenly, with the first and the last."""
    if ALL or len(cases) <= count:
        return cases
    return [cases[round(place * (len(cases) - 1) / (count - 1))] for place in range(count)]
