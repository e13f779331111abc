"""What a verb gives back: tables for people, one JSON value for machines, and how both look in a notebook."""

from __future__ import annotations

import html
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from featurecache.errors import FeatureCacheError

SHOWN_ROWS = 60
"""Rows of a table that are displayed; `to_pandas` returns all."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns, with a title and remarks below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = field(default_factory=tuple)

    def __repr__(self) -> str:
        """Return the table as aligned text."""
        shown = [tuple(map(str, row)) for row in (self.columns, *self.rows[:SHOWN_ROWS])] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in shown]
        return "\n".join([*([self.title] if self.title and shown else []), *lines, *self._remarks()])

    def _repr_html_(self) -> str:
        """Return the table as HTML for a notebook; no text in it is read as HTML."""
        title = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        head = _html_row(self.columns, "th")
        body = "".join(_html_row(row, "td") for row in self.rows[:SHOWN_ROWS])
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._remarks())
        table = f"<table>{title}<thead>{head}</thead><tbody>{body}</tbody></table>" if self.rows else ""
        return f"<div>{table}{notes}</div>"

    def _remarks(self) -> list[str]:
        more = len(self.rows) - SHOWN_ROWS
        return [*([f"... {more} more rows"] if more > 0 else []), *self.notes]

    def to_pandas(self) -> Any:
        """Return the table as a `pandas.DataFrame`; a column of which every cell is a number is one of numbers.

        Raises:
            FeatureCacheError: pandas is not installed.
        """
        pandas = import_pandas()
        frame = pandas.DataFrame([tuple(row) for row in self.rows], columns=list(self.columns))
        for name in frame.columns:
            try:
                frame[name] = pandas.to_numeric(frame[name])
            except (TypeError, ValueError):
                continue  # a column of text stays one
        return frame


def _html_row(cells: Sequence[Any], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def import_pandas() -> Any:
    """Return the module pandas, which is no requirement of this package.

    Raises:
        FeatureCacheError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise FeatureCacheError(
            f"to_pandas needs pandas, which cannot be imported ({error}). Install it: pip install 'featurecache[pandas]'"
        ) from None


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


class Displayed:
    """Base of a report that displays its tables, as text and in a notebook, and returns them as data frames."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        """Display the tables also where `dataclass` would list the fields."""
        super().__init_subclass__()
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Displayed.__repr__  # type: ignore[method-assign]

    def tables(self) -> list[Table]:
        """Return what a person reads."""
        raise NotImplementedError(f"{type(self).__name__} has no tables")

    def json(self) -> Any:
        """Return what a machine reads."""
        raise NotImplementedError(f"{type(self).__name__} has no JSON")

    def __repr__(self) -> str:
        """Return the tables as aligned text."""
        return "\n\n".join(text for text in map(repr, self.tables()) if text) or f"<{type(self).__name__}>"

    def _repr_html_(self) -> str:
        """Return the tables as HTML for a notebook."""
        return "".join(table._repr_html_() for table in self.tables())

    def to_pandas(self, table: int = 0) -> Any:
        """Return a `pandas.DataFrame`: of a list of entries all their values, else the table of that number as displayed.

        Args:
            table: which of the tables that have rows, from 0.

        Raises:
            FeatureCacheError: pandas is not installed, or there is no such table.
        """
        pandas, entries = import_pandas(), self.json()
        if table == 0 and isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries):
            return pandas.json_normalize(entries)
        filled = [one for one in self.tables() if one.rows]
        if not -len(filled) <= table < len(filled):
            titles = ", ".join(f"{number} ({one.title})" for number, one in enumerate(filled)) or "none"
            raise FeatureCacheError(f"there is no table {table}; there are: {titles}")
        return filled[table].to_pandas()
