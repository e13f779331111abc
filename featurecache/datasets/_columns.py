"""Manifests as columns of text: CSV, TSV and Parquet, every row with the place where its author finds it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.datasets._manifest_options import ManifestOptions
from featurecache.datasets._manifest_text import SHOWN, read_text_table
from featurecache.errors import DatasetError
from featurecache.registry import nearest

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger("featurecache")

KNOWN = ("path", "label", "split", "domain", "group", "sample_id")
OTHER_NAMES = {
    "path": (
        "image", "images", "img", "image_path", "img_path", "image_file", "image_name", "image_id", "file", "files", "filename",
        "file_name", "filepath", "file_path", "paths", "name", "fname", "jpg", "url",
    ),
    "label": (
        "class", "classes", "class_name", "category", "target", "targets", "labels", "y", "tag", "tags", "diagnosis", "dx",
        "species", "breed", "class_id", "classid",
    ),
    "split": ("set", "subset", "fold", "partition", "phase", "usage"),
    "group": ("patient", "patient_id", "patientid", "subject", "subject_id", "groups", "group_id", "lesion_id"),
    "domain": ("domains", "site", "hospital", "camera", "source"),
    "sample_id": ("id", "uid", "uuid"),
}  # fmt: skip
"""Our name of a column -> what others call it. Such a column is not used unasked, and a message says how to use it."""


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


def columns_of(path: Path, options: ManifestOptions | None = None) -> Columns:
    """Read the columns of the manifest that mean something here, whatever else it holds.

    Raises:
        DatasetError: it cannot be read as its suffix says, has no rows, or has no `path`.
    """
    read = _of_parquet if path.suffix.lower() == ".parquet" else _of_text
    try:
        columns = read(path, options or ManifestOptions())
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from None
    if not len(columns):
        raise DatasetError(f"{path} has no rows below its header. Write one for each image.")
    return columns


def _of_text(path: Path, options: ManifestOptions) -> Columns:
    table = read_text_table(
        path, options.columns.get("path", "path"), delimiter=options.delimiter, encoding=options.encoding
    )
    places = _find_columns(table.names, path, options.columns)
    return Columns({name: [row[i] for row in table.rows] for name, i in places.items()}, table.numbers, "line")


def _of_parquet(path: Path, options: ManifestOptions) -> Columns:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            places = _find_columns(names, path, options.columns)
            table = file.read(columns=[names[i] for i in places.values()])
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{path} is not a Parquet file: {error}") from None
    values = {name: _text(table.column(names[i]), name, path) for name, i in places.items()}
    return Columns(values, range(1, table.num_rows + 1), "row")


def _find_columns(names: Sequence[str], path: Path, asked: Mapping[str, str]) -> dict[str, int]:
    """Return our name -> place of each column that means something, in the order of the file; say which do not.

    Case and spaces around a name do not matter. `asked` is our name -> the file's, for columns that are called otherwise.

    Raises:
        DatasetError: one is there twice, is asked for and absent, or none has the paths.
    """
    found: dict[str, list[int]] = {}
    for ours, theirs in asked.items():
        same = [i for i, name in enumerate(names) if _plain(name) == _plain(theirs)]
        if not same:
            raise DatasetError(
                f"{path} has no column {theirs!r}, which {ours}={theirs} asks for; its columns are {', '.join(names)}."
                f"{nearest(theirs, list(names))}"
            )
        found[ours] = same
    taken = {i for places in found.values() for i in places}
    for i, name in enumerate(names):
        plain = _plain(name)
        if i not in taken and plain not in asked and (plain in KNOWN or is_label(plain)):
            ours = name.strip() if plain in KNOWN else f"label_{name.strip()[len('label_') :]}"
            found.setdefault(plain if plain in KNOWN else ours, []).append(i)
    twice = sorted(name for name, places in found.items() if len(places) > 1)
    if twice:
        raise DatasetError(f"{path} has the columns {', '.join(twice)} twice; its columns are {', '.join(names)}.")
    if "path" not in found:
        raise DatasetError(_no_path(names, path))
    places = {name: at[0] for name, at in found.items()}
    _warn_of_unused(names, path, places)
    return dict(sorted(places.items(), key=lambda pair: pair[1]))


def _no_path(names: Sequence[str], path: Path) -> str:
    there = set(map(_plain, names))
    likely = {ours: _called(ours, names) for ours in ("path", "label", "split", "group") if ours not in there}
    query = "&".join(f"{ours}={name}" for ours, name in likely.items() if name)
    way = f" Rename columns, or name them: {path.name}?{query}." if likely["path"] else ""
    return (
        f"{path} has no column `path`; its columns are {', '.join(names) or 'none'}.{nearest('path', list(names))}{way} "
        "The first line names them: path,label, and where there are such split, domain, group, sample_id."
    )


def _called(ours: str, names: Sequence[str]) -> str | None:
    """Return the column that may be what we call by another name."""
    for other in OTHER_NAMES[ours]:
        for name in names:
            if _plain(name).replace(" ", "_").replace("-", "_") == other:
                return name.strip()
    return None


def _warn_of_unused(names: Sequence[str], path: Path, places: Mapping[str, int]) -> None:
    unused = [name for i, name in enumerate(names) if i not in places.values() and name.strip()]
    ways = {}
    for ours in KNOWN:
        lacks = ours not in places and not (ours == "label" and any(map(is_label, places)))
        if lacks and (theirs := _called(ours, unused)):
            ways[theirs] = f" ({path.name}?{ours}={theirs} reads it as {ours})"
    shown = [f"{name!r}{ways.get(name.strip()) or nearest(name, list(KNOWN))}" for name in unused]
    if shown:
        log.warning("%s: columns that are not used: %s", path, ", ".join(shown))


def _plain(name: str) -> str:
    return name.strip().lower()


def _text(column: pyarrow.ChunkedArray, name: str, path: Path) -> list[str]:
    import pyarrow as pa

    try:
        values = column.cast(pa.string()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DatasetError(f"{path}: the column {name} is of type {column.type}. Write text or numbers.") from None
    # NaN in a column of numbers is how pandas writes that nothing is known; in a column of text it is a name
    unknown = "nan" if pa.types.is_floating(column.type) else ""
    return ["" if value is None or value == unknown else value.strip() for value in values]
