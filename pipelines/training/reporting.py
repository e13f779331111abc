"""What a run of a head came to, as tables; from its record alone, so that to show a run loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.reports import Displayed, Table, format_measured
from pipelines.training.closing import describe_parameters, describe_selection, describe_split, describe_training
from pipelines.training.convergence import describe_improving

SHOWN = 10
"""Lines of a sweep that are shown; all of them are in sweep.csv."""


@dataclass(frozen=True, slots=True)
class TrainReport(Displayed):
    """A finished run."""

    folder: Path
    record: Mapping[str, Any]
    repeated: bool = False
    """Whether the run was there already."""

    def tables(self) -> list[Table]:
        """Return one row a split, metrics with 95 % intervals."""
        metrics = self.record["metrics"]
        names = [name for name, value in next(iter(metrics.values()), {}).items() if isinstance(value, dict)]
        counts = self.record["rows"]
        rows = [
            (describe_split(split, self.record), *(format_measured(found[name]) for name in names), counts[split])
            for split, found in metrics.items()
        ]
        notes = [f"{self.folder}: " + ("this run is there already: nothing to do" if self.repeated else self._cost())]
        if self.record.get("still_improving"):
            notes.append(describe_improving(self.record["head"], 1, 1))
        notes += describe_selection(self.record)
        title = f"{self.record['head']} on {', '.join(_ends(self.record['arrays']))} (95 % intervals)"
        return [*_sweep_tables(self.record), Table(title, ("split", *names, "rows"), rows, notes)]

    def _cost(self) -> str:
        return f"{describe_training(self.record)}, {describe_parameters(self.record)}, {self.record['seconds']:.1f} s"

    def json(self) -> dict[str, Any]:
        """Return the record and the folder."""
        return {"run": str(self.folder), **self.record}


def _sweep_tables(record: Mapping[str, Any]) -> list[Table]:
    """Return the best cells of a sweep, and the repetitions of the chosen setting where it has several seeds."""
    if "sweep" not in record:
        return []
    from pipelines.training.selection import columns_of

    lines, metric = record["sweep"]["cells"], record["selected_by"].replace(" ", "_")
    alive = sorted((line for line in lines if line[metric] is not None), key=lambda line: -line[metric])
    left_out = ("parameters", "trained_parameters", "diverged_in_epoch", "arrays")
    columns = [name for name in columns_of(lines) if name not in left_out]
    rows = [tuple(_cell_text(line.get(name)) for name in columns) for line in alive[:SHOWN]]
    notes = [f"{len(lines)} cells, all of them in sweep.csv; chosen on validation"]
    diverged = sum(line["diverged_in_epoch"] is not None for line in lines)
    notes += [f"{diverged} of them diverged"] if diverged else []
    tables = [Table("sweep", tuple(columns), rows, notes)]
    repeated = record["sweep"]["repetitions"]
    values = [one[f"test_{metric.removeprefix('val_')}"] for one in repeated]
    if len(values) > 1 and None not in values:
        said = f"{np.mean(values):.4f} +- {np.std(values, ddof=1):.4f} over {len(values)} seeds (mean, deviation)"
        tables.append(Table("", (), (), [f"test {metric.removeprefix('val_')} of the chosen setting: {said}"]))
    return tables


def _cell_text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _ends(arrays: list[str]) -> list[str]:
    return arrays if len(arrays) <= 3 else [arrays[0], "...", arrays[-1]]
