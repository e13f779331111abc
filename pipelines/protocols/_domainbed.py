"""DomainBed's seeds, splits and draws of hyper-parameters, exactly as its code makes them (Gulrajani and Lopez-Paz, 2021)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HELD_OUT = 0.2
"""Share of a domain that is not trained on."""
LARGE = {"DomainNet": 5.0}
"""Data set -> the most bits of its batch size; of others 5.5."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Hyper-parameters of one setting; the batch is of every source domain."""

    lr: float
    momentum: float
    batch_size: int


def seed_hash(*parts: Any) -> int:
    """Return a seed below 2^31 that is a fixed function of the parts."""
    return int(hashlib.md5(str(parts).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31


def split_keys(count: int, trial_seed: int, domain: int) -> tuple[list[int], list[int]]:
    """Return (out, in), the places of a domain's rows that are held out and those that are trained on, in drawn order."""
    keys = list(range(count))
    np.random.RandomState(seed_hash(trial_seed, domain)).shuffle(keys)
    stop = int(count * HELD_OUT)
    return keys[:stop], keys[stop:]


def drawn_setting(dataset: str, hparams_seed: int, trial_seed: int) -> Draw:
    """Return the setting of one draw; seed 0 is the default setting."""
    if not hparams_seed:
        return Draw(1e-3, 0.1, 32)
    seed = seed_hash(hparams_seed, trial_seed)
    lr, momentum, batch = (np.random.RandomState(seed_hash(seed, name)) for name in ("lr", "momentum", "batch_size"))
    return Draw(
        float(10 ** lr.uniform(-4.5, -2.5)),
        float(momentum.choice([0.0, 0.1, 0.2])),
        int(2 ** batch.uniform(3, LARGE.get(dataset, 5.5))),
    )


def run_seed(dataset: str, algorithm: str, tests: Sequence[int], hparams_seed: int, trial_seed: int) -> int:
    """Return the seed of a run that holds out the domains of these numbers."""
    return seed_hash(dataset, algorithm, list(tests), hparams_seed, trial_seed)
