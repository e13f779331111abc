"""Options of a manifest: `MANIFEST?classes=a,b&label_separator=comma&delimiter=semicolon&encoding=cp1252&path=filename`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featurecache.datasets._query import check_keys
from featurecache.errors import DatasetError

COLUMNS = ("path", "label", "split", "domain", "group", "sample_id")
"""Options that name the column which is called otherwise in the file."""
KEYS = ("classes", "label_separator", "delimiter", "encoding", *COLUMNS)
CHARACTERS = {
    "comma": ",", "semicolon": ";", "space": " ", "tab": "\t", "bar": "|", "pipe": "|", "slash": "/", "plus": "+", "colon": ":",
    "ampersand": "&", "hash": "#", "underscore": "_", "dash": "-",
}  # fmt: skip
"""Words for characters that mean something in a shell."""


@dataclass(frozen=True, slots=True)
class ManifestOptions:
    """How a manifest is read, where its user says so."""

    classes: tuple[str, ...] | None = None
    """All the classes there are, in order; None: those that are seen."""
    label_separator: str | None = None
    """Between the labels in one cell; None: a bar."""
    delimiter: str | None = None
    """Between the cells of a text file; None: as its header shows."""
    encoding: str | None = None
    """Of a text file; None: UTF-8, or what its byte order mark says."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name -> the name of the column in the file."""

    @classmethod
    def parse(cls, options: Mapping[str, str], spec: str) -> ManifestOptions:
        """Read the options of a spec.

        Raises:
            DatasetError: one is not known, or has a value that cannot be.
        """
        check_keys(options, KEYS, spec)
        empty = [key for key, value in options.items() if not value]
        if empty:
            raise DatasetError(f"{spec!r} gives no value for {', '.join(empty)}.")
        delimiter = _character(options.get("delimiter"))
        if delimiter is not None and len(delimiter) != 1:
            known = ", ".join(CHARACTERS)
            raise DatasetError(f"{spec!r}: the delimiter {delimiter!r} is not one character. Words for some: {known}.")
        return cls(
            classes=tuple(options["classes"].split(",")) if "classes" in options else None,
            label_separator=_character(options.get("label_separator")),
            delimiter=delimiter,
            encoding=options.get("encoding"),
            columns={key: options[key] for key in COLUMNS if key in options},
        )


def _character(word: str | None) -> str | None:
    return word if word is None else CHARACTERS.get(word.lower(), word)
