"""The text of a .csv or .tsv manifest: its encoding, its delimiter, and its rows with the line where each begins."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import DatasetError

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""UTF-32 before UTF-16, whose mark it begins with."""
NO_TEXT = {
    b"PK\x03\x04": "it is a .zip, as the workbooks of Excel are (save the sheet as CSV)", b"\x1f\x8b": "it is compressed with gzip",
    b"PAR1": "it is a Parquet file", b"\xd0\xcf\x11\xe0": "it is a workbook of an old Excel (save the sheet as CSV)",
}  # fmt: skip
"""First bytes -> what such a file is."""
DELIMITERS = (",", ";", "\t", "|")
SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
"""First line by which Excel names the delimiter."""
SHOWN = 5


@dataclass(frozen=True, slots=True)
class TextTable:
    """The cells of a text file, stripped."""

    names: list[str]
    rows: list[list[str]]
    """As many cells each as there are names."""
    numbers: list[int]
    """Line where each row begins, from 1."""


def read_text_table(path: Path, path_column: str, *, delimiter: str | None, encoding: str | None) -> TextTable:
    """Read a file of delimited text.

    Args:
        path: the file.
        path_column: name of the column with the paths; the delimiter is the one by which the header names it.
        delimiter: one character; None: as the header shows.
        encoding: of the text; None: UTF-8, or what a byte order mark says.

    Raises:
        DatasetError: it is no text of that encoding, or has broken lines; names them and the way out.
    """
    kind = path.suffix[1:]
    text = decode_text(path.read_bytes(), encoding, path)
    marked = SEP_LINE.fullmatch(text.partition("\n")[0])
    if delimiter is None:
        delimiter = marked[1] if marked else _find_delimiter(text, path_column, "\t" if kind.lower() == "tsv" else ",")
    numbered = _numbered_rows(text, delimiter, path)
    if marked:
        next(numbered, None)
    _, names = next(numbered, (0, []))
    table = TextTable(names, [], [])
    broken: list[str] = []
    for number, row in numbered:
        cells = row[: len(names)] if not any(row[len(names) :]) else row
        if len(cells) != len(names):
            broken.append(f"line {number}: {delimiter.join(row)!r} has {len(cells)} columns, not {len(names)}")
        else:
            table.rows.append(cells)
            table.numbers.append(number)
    if broken:
        more = ", ..." if len(broken) > SHOWN else ""
        raise DatasetError(
            f"{path} has {len(broken)} broken lines: {'; '.join(broken[:SHOWN])}{more}. Put values that hold the "
            "delimiter in double quotes."
        )
    return table


def decode_text(content: bytes, encoding: str | None, path: Path) -> str:
    """Return the text of a manifest, without a byte order mark.

    Raises:
        DatasetError: it is not of that encoding, or no text; says what to give instead.
    """
    kind = path.suffix[1:]
    seen = next((what for start, what in NO_TEXT.items() if content.startswith(start)), None)
    if seen:
        raise DatasetError(f"{path} is not a {kind} file of text: {seen}.")
    marked = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), None)
    try:
        text = content.decode(encoding or marked or "utf-8").removeprefix("\ufeff")
    except LookupError:
        raise DatasetError(
            f"there is no encoding {encoding!r}. Common ones are utf-8, utf-16, cp1252, latin-1, gbk, shift-jis."
        ) from None
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path} is not a {kind} file of {_not_text(content, error, encoding or marked, path)}"
        ) from None
    if "\0" in text[:4096]:
        order = "be" if content.startswith(b"\0") else "le"
        raise DatasetError(
            f"{path} is not a {kind} file of UTF-8 text: every other byte is zero, as in UTF-16. Give "
            f"{path.name}?encoding=utf-16-{order}, or save it as UTF-8."
        )
    return text


def _not_text(content: bytes, error: UnicodeDecodeError, encoding: str | None, path: Path) -> str:
    number = content[: error.start].count(b"\n") + 1
    line = content.split(b"\n")[number - 1].rstrip(b"\r")
    seen = f"{(encoding or 'UTF-8')} text: line {number} holds the byte 0x{content[error.start]:02x}"
    if encoding is not None:
        return f"{seen}. Give the encoding it was saved in, or none for UTF-8."
    return (
        f"{seen}. Save it as UTF-8, or name its encoding: with {path.name}?encoding=cp1252, that of Excel in Western Europe, "
        f"the line reads {line.decode('cp1252', errors='replace')!r}."
    )


def _find_delimiter(text: str, path_column: str, usual: str) -> str:
    """Return the delimiter by which the header names the column of the paths; else the one that cuts it into most."""
    candidates = [usual, *(one for one in DELIMITERS if one != usual)]
    headers = {one: _header(text, one) for one in candidates}
    for one, names in headers.items():
        if path_column.strip().lower() in [name.lower() for name in names]:
            return one
    return max(candidates, key=lambda one: len(headers[one]))


def _header(text: str, delimiter: str) -> list[str]:
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return next(([cell.strip() for cell in row] for row in rows if any(map(str.strip, row))), [])
    except csv.Error:  # reading the rows says it with its line
        return []


def _numbered_rows(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where it begins, stripped cells) of every row that is not empty."""
    begins = 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(
            f"{path}: the row that begins in line {begins} cannot be read: {error}. A double quote at the start of a value must "
            "be closed at its end, and one within it doubled."
        ) from None
