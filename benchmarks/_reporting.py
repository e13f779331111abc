"""What the benchmarks of this folder print and write: ratios of things timed in turns, each beside its limit.

Other programs run beside ours, so two things that are compared take turns (A B, A B, ...); the ratio is taken inside
each turn, where both met the same company, and the middle one counts.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One line of the table."""

    what: str
    against: str
    value: float
    limit: float | None = None
    """None: for information."""
    bound: Literal["at least", "at most"] = "at least"
    of_each_turn: Sequence[float] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    """The figures behind the ratio, with their units in their names."""

    @property
    def held(self) -> bool:
        """Whether the limit is kept; a line without one always is."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.bound == "at least" else self.value <= self.limit


def seconds(act: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def in_turns(acts: Sequence[Callable[[], float]], turns: int) -> list[tuple[float, ...]]:
    """Return what each act measures in each turn; every second turn runs backwards, so that none is always first."""
    found = []
    for turn in range(turns):
        order = range(len(acts)) if turn % 2 == 0 else range(len(acts) - 1, -1, -1)
        measured = {number: acts[number]() for number in order}
        found.append(tuple(measured[number] for number in range(len(acts))))
    return found


def middle(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def conclude(title: str, ratios: Sequence[Ratio], settings: dict[str, Any], out: Path | None) -> int:
    """Print the table, write the JSON where it is wanted, and return the exit code: 1 when a limit is missed."""
    print(title)
    rows = [(r.what, r.against, f"{r.value:.3f}", _shown(r), _spread(r)) for r in ratios]
    rows.insert(0, ("what", "against", "ratio", "limit", "of the turns"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for ratio in ratios:
        if ratio.figures:
            print(f"{ratio.what}: " + ", ".join(f"{name} {_number(value)}" for name, value in ratio.figures.items()))
    if out is not None:
        found = [asdict(ratio) | {"held": ratio.held} for ratio in ratios]
        written = {"title": title, "settings": settings, "machine": machine(), "ratios": found}
        out.write_text(json.dumps(written, indent=2, default=str) + "\n", encoding="utf-8")
    return 0 if all(ratio.held for ratio in ratios) else 1


def machine() -> dict[str, Any]:
    """Return what the figures depend on and the benchmark does not set."""
    return {
        "platform": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(), "load": os.getloadavg(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip


def _shown(ratio: Ratio) -> str:
    if ratio.limit is None:
        return "-"
    return f"{ratio.bound} {ratio.limit:g}: {'ok' if ratio.held else 'MISSED'}"


def _spread(ratio: Ratio) -> str:
    return f"{min(ratio.of_each_turn):.3f} .. {max(ratio.of_each_turn):.3f}" if ratio.of_each_turn else ""


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table that reads well as text and as Markdown."""
    cells = [[str(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(f"| {line} |" for line in lines)
