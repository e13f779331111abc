"""Manifests as columns of text: CSV, TSV and Parquet, every row with the place where its author finds it."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import DatasetError
from featurecache.registry import nearest

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger("featurecache")

KNOWN = ("path", "label", "split", "domain", "group", "sample_id")
SHOWN = 5
"""Examples of each kind of problem that a message names."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a data set is made of, as stripped text, "" where nothing stands."""

    values: dict[str, list[str]]
    numbers: Sequence[int]
    """Where each row stands: line of a text file, row of a Parquet file; from 1."""
    unit: str
    """line or row."""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def labels(self) -> list[str]:
        """The columns with labels, in the order of the file."""
        return [name for name in self.values if is_label(name)]

    def listed(self, what: str, found: Iterable[tuple[int, str]]) -> list[str]:
        """Return [] or one line that counts the problems, given as (row, what stands there), and names the first."""
        problems = list(found)
        shown = ", ".join(f"{self.unit} {self.numbers[row]}: {text!r}" for row, text in problems[:SHOWN])
        more = ", ..." if len(problems) > SHOWN else ""
        return [f"{what} ({len(problems)}): {shown}{more}"] if problems else []


def is_label(name: str) -> bool:
    """Return whether a column holds labels: `label`, or `label_` and a name."""
    return name == "label" or name.startswith("label_")


def columns_of(path: Path) -> Columns:
    """Read the columns of the manifest that mean something here, whatever else it holds.

    Raises:
        DatasetError: it cannot be read as its suffix says, has no rows, or has no `path`.
    """
    read = _of_parquet if path.suffix.lower() == ".parquet" else _of_text
    try:
        columns = read(path)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from None
    if not len(columns):
        raise DatasetError(f"{path} has no rows below its header. Write one for each image.")
    return columns


def _of_text(path: Path) -> Columns:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    lines = content.splitlines()
    numbers = [number for number, line in enumerate(lines, 1) if line]
    try:
        header = lines[numbers[0] - 1].decode("utf-8") if numbers else ""
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not a {path.suffix[1:]} file of UTF-8 text: {error.reason}") from None
    names = next(csv.reader([header], delimiter=delimiter), [])
    chosen = _chosen(names, path)
    if len(numbers) < 2:
        return Columns({name: [] for name in chosen}, [], "line")
    ragged: list[str] = []

    def keep(row: Any) -> str:
        place = f"line {numbers[row.number - 1]}: {row.text!r}"
        ragged.append(f"{place} has {row.actual_columns} columns, not {row.expected_columns}")
        return "skip"

    try:
        table = arrow_csv.read_csv(
            io.BytesIO(content),
            read_options=arrow_csv.ReadOptions(use_threads=False),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, invalid_row_handler=keep),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), include_columns=chosen, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{path} is not a {path.suffix[1:]} file of UTF-8 text: {error}") from None
    if ragged:
        more = ", ..." if len(ragged) > SHOWN else ""
        raise DatasetError(
            f"{path} has {len(ragged)} broken lines: {'; '.join(ragged[:SHOWN])}{more}. Put values that hold the "
            "delimiter in double quotes."
        )
    return Columns(_text(table, chosen, path), numbers[1:], "line")


def _of_parquet(path: Path) -> Columns:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            chosen = _chosen(file.schema_arrow.names, path)
            table = file.read(columns=chosen)
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{path} is not a Parquet file: {error}") from None
    return Columns(_text(table, chosen, path), range(1, table.num_rows + 1), "row")


def _chosen(names: Sequence[str], path: Path) -> list[str]:
    """Return the names that mean something, in the order of the file; say which others are left out."""
    used = [name for name in names if name in KNOWN or is_label(name)]
    twice = sorted({name for name in used if used.count(name) > 1})
    nearly = [name for name in names if name not in used and (is_label(_plain(name)) or _plain(name) in KNOWN)]
    if nearly:
        raise DatasetError(
            f"{path} has the columns {', '.join(map(repr, nearly))}. Write {', '.join(map(_plain, nearly))}, "
            "in small letters and without spaces: as they are they would be left out."
        )
    if "path" not in used or twice:
        wrong = f"the columns {', '.join(twice)} twice" if twice else "no column `path`"
        raise DatasetError(
            f"{path} has {wrong}; its columns are {', '.join(names) or 'none'}.{nearest('path', list(names))} "
            "The first line names them: path,label, and where there are such split, domain, group, sample_id."
        )
    unused = [f"{name!r}{nearest(name, list(KNOWN))}" for name in names if name not in used]
    if unused:
        log.warning("%s: columns that are not used: %s", path, ", ".join(unused))
    return used


def _plain(name: str) -> str:
    return name.strip().lower()


def _text(table: pyarrow.Table, chosen: Sequence[str], path: Path) -> dict[str, list[str]]:
    import pyarrow as pa

    found: dict[str, list[str]] = {}
    for name in chosen:
        column = table.column(name)
        try:
            values = column.cast(pa.string()).to_pylist()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DatasetError(f"{path}: the column {name} is of type {column.type}. Write text or numbers.") from None
        found[name] = [(value or "").strip() for value in values]
    return found
