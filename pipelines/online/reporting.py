"""What a sweep and a comparison of methods came to, as tables; from their records alone, so that to show them loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.reports import Displayed, Table, format_interval

BASELINE = "linear"
"""Method that the others are compared with."""


@dataclass(frozen=True, slots=True)
class SweepReport(Displayed):
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
        said = f"test {metric} {self._tested(tests)}" if tests else "no test rows"
        notes = [
            f"trained on train and validation with the first: {said}, {len(tests)} run(s) in {self.folder / 'final'}"
        ]
        notes += [self.record["splits"]["remark"]] if "splits" in self.record else []
        notes += [self.record["remark"]] if self.record["remark"] else []
        notes += ["this sweep is there already: nothing to do"] if self.repeated else []
        return [Table("settings, best first", (*names, f"val_{metric} of the last epoch"), lines, notes)]

    def _tested(self, tests: Sequence[float]) -> str:
        """Return the mean over seeds with their deviation, or the value of one seed with its interval over rows."""
        if len(tests) > 1:
            return f"{np.mean(tests):.4f} +- {np.std(tests, ddof=1):.4f} (mean and deviation over seeds)"
        only = self.record["final"][0]
        interval = format_interval(only.get("low"), only.get("high"))
        return f"{tests[0]:.4f}" + (f" {interval} (95 % over rows)" if interval else "")

    def json(self) -> dict[str, Any]:
        """Return the record and the folder."""
        return {"run": str(self.folder), **self.record}


@dataclass(frozen=True, slots=True)
class CompareReport(Displayed):
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
            costs = ("trainable parameters", "saved MiB a step", "s a step", "GMAC")
            ends = ("", "seeds_") if len(self.record["asked"]["seeds"]) > 1 else ("",)
            spans = ("95 % over rows", "95 % over seeds")[: len(ends)]
            columns = ("method", metric, *spans, f"to {BASELINE}", *spans, *costs)
            found.append(Table(title, columns, [_shown(_with_ends(line), ends) for line in lines]))
        notes = [*self.record["remarks"], f"{self.folder}: {', '.join(self.record['files'])}"]
        return [*found, Table("", (), (), [*notes, *(["nothing to do"] if self.repeated else [])])]

    def json(self) -> dict[str, Any]:
        """Return the record and the folder."""
        return {"run": str(self.folder), **self.record}


def _shown(line: Mapping[str, Any], ends: Sequence[str]) -> tuple[str, ...]:
    """Return the cells of a line; `ends` begin the names of the intervals that are shown."""
    intervals = [
        format_interval(line.get(f"{what}{kind}low"), line.get(f"{what}{kind}high"), form)
        for what, form in (("", ".4f"), ("difference_", "+.4f")) for kind in ends
    ]  # fmt: skip
    half = len(ends)
    return (
        line["method"], f"{line['mean']:.4f}", *intervals[:half], f"{line['difference']:+.4f}", *intervals[half:],
        _sizes(line), f"{line['saved_bytes'] / 2**20:.1f}", f"{line['step_seconds']:.3f}",
        f"{line['multiply_adds'] / 1e9:.3f}",
    )  # fmt: skip


def _sizes(line: Mapping[str, Any]) -> str:
    """Return how much of backbone and head was trainable; an older record knows of the backbone alone."""
    if "trainable" not in line:
        return f"{line['trained']:,} of the backbone"
    return f"{line['trainable']:,} of {line['parameters']:,}, {line['trained']:,} of them in the backbone"


def _with_ends(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a line with the ends of its intervals over seeds; one of an older record has their half width alone."""
    if "seeds_low" in line:
        return line
    found = dict(line)
    for what, value, half in (("", "mean", "half_width"), ("difference_", "difference", "difference_half_width")):
        if line[half] is not None:
            found |= {f"{what}seeds_low": line[value] - line[half], f"{what}seeds_high": line[value] + line[half]}
    return found
