"""What a sweep and a comparison of methods came to, as tables; from their records alone, so that to show them loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.reports import Table

BASELINE = "linear"
"""Method that the others are compared with."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep came to."""

    folder: Path
    record: Mapping[str, Any]
    repeated: bool = False

    def tables(self) -> list[Table]:
        """Return every setting with its validation, the best first, and the test of the chosen one."""
        metric, cells = self.record["metric"], self.record["settings"]
        names = list(cells[0]["setting"])
        lines = [
            (*(one["setting"][name] for name in names), f"{one['val']:.4f}" if one["val"] is not None else "diverged")
            for one in cells
        ]  # fmt: skip
        tests = [run["test"] for run in self.record["final"] if run["test"] is not None]
        said = (
            f"test {metric} {np.mean(tests):.4f}" + (f" +- {np.std(tests, ddof=1):.4f}" if len(tests) > 1 else "")
            if tests
            else "no test rows"
        )
        notes = [
            f"trained on train and validation with the first: {said}, {len(tests)} run(s) in {self.folder / 'final'}"
        ]
        notes += [self.record["splits"]["remark"]] if "splits" in self.record else []
        notes += [self.record["remark"]] if self.record["remark"] else []
        notes += ["this sweep is there already: nothing to do"] if self.repeated else []
        return [Table("settings, best first", (*names, f"val_{metric} of the last epoch"), lines, notes)]

    def json(self) -> dict[str, Any]:
        """Return the record and the folder."""
        return {"run": str(self.folder), **self.record}


@dataclass(frozen=True, slots=True)
class CompareReport:
    """What the methods came to."""

    folder: Path
    record: Mapping[str, Any]
    repeated: bool = False

    def tables(self) -> list[Table]:
        """Return a table for each data set, the best method first."""
        found = []
        for title in dict.fromkeys(line["data"] for line in self.record["lines"]):
            lines = [line for line in self.record["lines"] if line["data"] == title]
            metric = self.record["metrics"][title]
            costs = ("trained in backbone", "saved MiB a step", "s a step", "GMAC")
            columns = ("method", metric, f"to {BASELINE}", *costs)
            found.append(Table(title, columns, [_shown(line) for line in lines]))
        notes = [*self.record["remarks"], f"{self.folder}: {', '.join(self.record['files'])}"]
        return [*found, Table("", (), (), [*notes, *(["nothing to do"] if self.repeated else [])])]

    def json(self) -> dict[str, Any]:
        """Return the record and the folder."""
        return {"run": str(self.folder), **self.record}


def _shown(line: Mapping[str, Any]) -> tuple[str, ...]:
    interval, between = (
        "" if line[name] is None else f" +- {line[name]:.4f}" for name in ("half_width", "difference_half_width")
    )
    return (
        line["method"], f"{line['mean']:.4f}{interval}", f"{line['difference']:+.4f}{between}", f"{line['trained']:,}",
        f"{line['saved_bytes'] / 2**20:.1f}", f"{line['step_seconds']:.3f}", f"{line['multiply_adds'] / 1e9:.3f}",
    )  # fmt: skip
