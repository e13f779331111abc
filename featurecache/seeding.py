"""Seeds from meaning: every random draw comes from a generator whose seed is a digest of what it is for."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt


def seed_of(*parts: Any) -> int:
    """Return a 63-bit seed that depends on every part and on nothing else (BLAKE2b of their text)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def unit_interval(key: str, *salt: Any) -> float:
    """Return a number in [0, 1) that is a fixed function of `key` and the salt."""
    return seed_of(*salt, key) / 2**63


def generator(*parts: Any) -> np.random.Generator:
    """Return a NumPy generator seeded by `seed_of(*parts)`."""
    return np.random.default_rng(seed_of(*parts))


def permutation(count: int, *parts: Any) -> npt.NDArray[np.int64]:
    """Return a permutation of `range(count)` that is a fixed function of the parts."""
    return generator(*parts).permutation(count)
