"""Which cell of a sweep is the best on validation, and what all of them came to."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurecache.errors import RunError
from featurecache.features import Task
from featurecache.metrics import primary

if TYPE_CHECKING:
    from pipelines.training.training import Trained


def selected(trained: Sequence[Trained]) -> list[Trained]:
    """Return the cells of the best setting, one a seed: its mean over the seeds is best on validation, then its loss.

    Without validation the first setting is taken where there is only one.

    Raises:
        RunError: every cell diverged, or several settings are to be chosen from without validation rows.
    """
    settings: dict[Any, list[Trained]] = {}
    for one in trained:
        settings.setdefault(one.cell.setting, []).append(one)
    alive = {name: group for name, group in settings.items() if not any(one.member.diverged for one in group)}
    if not alive:
        rates = ", ".join(sorted({f"{one.cell.lr:g}" for one in trained}))
        epoch = min(one.member.diverged for one in trained)
        raise RunError(
            f"the loss ceased to be a number (in epoch {epoch}, learning rate {rates}), so there is no head to keep. Give a "
            "lower --lr, or look at the features with: featurecache info STORE"
        )
    if len(settings) > 1 and any(len(one.member.best) < 2 for group in alive.values() for one in group):
        raise RunError(
            "a sweep chooses on validation rows, and there are none. Give the data a val split, or one setting."
        )
    return max(alive.values(), key=_standing)


def _standing(group: Sequence[Trained]) -> tuple[float, ...]:
    if any(len(one.member.best) < 2 for one in group):
        return (-math.inf,)
    means = np.mean([one.member.best for one in group], axis=0)
    return tuple(float(value) for value in means)


def sweep_rows(trained: Sequence[Trained], chosen: Sequence[Trained], task: Task) -> list[dict[str, Any]]:
    """Return one line a cell: what the sweep set, where it stood on validation, and whether it was chosen."""
    metric = primary(task)
    lines: list[dict[str, Any]] = []
    for one in trained:
        best = one.member.best if len(one.member.best) == 2 else (None, None)
        lines.append({
            **one.cell.named, f"val_{metric}": best[0], "val_loss": None if best[1] is None else -best[1],
            "best_epoch": one.member.best_epoch, "diverged_in_epoch": one.member.diverged or None,
            "parameters": one.parameters[0], "trained_parameters": one.parameters[1], **one.solved,
            "arrays": ",".join(one.cell.arrays), "chosen": any(one is other for other in chosen),
        })  # fmt: skip
    return lines


def columns_of(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names that any line has, in the order of the longest: a cell to which an axis says nothing lacks it."""
    return list(dict.fromkeys(name for line in [*sorted(lines, key=len)[-1:], *lines] for name in line))


def as_csv(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the lines as CSV; a column that some lack is empty there."""
    text = io.StringIO()
    columns = columns_of(lines)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()
