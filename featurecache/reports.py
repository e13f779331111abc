"""What a verb gives back: tables for people, one JSON value for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns, with a title and remarks below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = field(default_factory=tuple)


def format_interval(low: float | None, high: float | None, form: str = ".4f") -> str:
    """Return the ends of an interval as text: nothing where none is known, an infinite end where only that one is not."""
    if low is None and high is None:
        return ""
    return f"[{'-inf' if low is None else format(low, form)}, {'inf' if high is None else format(high, form)}]"


def format_measured(measured: Mapping[str, float | None], form: str = ".4f") -> str:
    """Return "value", "low" and "high" of a record as text; "undefined" where the rows leave a metric without a value."""
    if measured["value"] is None:
        return "undefined"
    return f"{measured['value']:{form}} {format_interval(measured['low'], measured['high'], form)}".rstrip()


class Report(Protocol):
    """The result of a verb's `run`."""

    def tables(self) -> list[Table]:
        """Return what a person reads."""

    def json(self) -> Any:
        """Return what a machine reads: plain lists, dictionaries, numbers and text."""
