"""What a verb gives back: tables for people, one JSON value for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns, with a title and remarks below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = field(default_factory=tuple)


class Report(Protocol):
    """The result of a verb's `run`."""

    def tables(self) -> list[Table]:
        """Return what a person reads."""

    def json(self) -> Any:
        """Return what a machine reads: plain lists, dictionaries, numbers and text."""
