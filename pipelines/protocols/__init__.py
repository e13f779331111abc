"""Which rows are learnt from, chosen on and measured, and over what results are averaged. One protocol, one file.

A file of this room defines `plan(stores, *, options) -> Plan`. `stores` is one store, or all that were named where the file
says `TOGETHER = True`. The keyword-only options are what users write as NAME?key=value, a tuple as values with commas;
`ARGUMENT` names the one that NAME:ARGUMENT gives. `PAPER` is the source.
A protocol turns row tables into trials. It knows no head and no loop, draws everything from seeds that mean something, and
refuses rows that do not allow it before anything is written. A fold knows no test rows, and a trial whose test rows or
groups are also learnt from or chosen on cannot be made: so test rows never reach selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from typing import Protocol as Likeness

from featurecache.stores import FeatureStore
from pipelines.protocols._classes import of_classes
from pipelines.protocols._domainbed import Draw, drawn_setting, run_seed, seed_hash, split_keys
from pipelines.protocols._grammar import PROTOCOLS, Asked, parse
from pipelines.protocols._rows import known_classes, need_classes, rows_of
from pipelines.protocols._trials import Fold, Judge, Part, Plan, Rows, Trial

__all__ = [
    "PROTOCOLS", "Asked", "Draw", "Fold", "Judge", "MakePlan", "Part", "Plan", "Rows", "Trial", "drawn_setting",
    "known_classes", "need_classes", "of_classes", "parse", "rows_of", "run_seed", "seed_hash", "split_keys",
]  # fmt: skip


class MakePlan(Likeness):
    """What `plan` in every file of this room must accept."""

    def __call__(self, stores: Sequence[FeatureStore], **options: Any) -> Plan:
        """Return the trials.

        Raises:
            ConfigError, StoreContentsError: the rows do not allow them; says why, and the way out.
        """
