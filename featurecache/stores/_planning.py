"""How many bytes a store will take, before it is written: array -> bytes of its files, and everything else in one entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurecache.features import Header
from featurecache.stores._chunks import chunk_rows
from featurecache.stores._constants import cuts
from featurecache.stores._layout import empty_store

if TYPE_CHECKING:
    from featurecache.datasets import RowTable

REST = "row table and metadata"


def in_chunks(header: Header, table: RowTable, chunk_multiple: int) -> dict[str, int]:
    """Return the bytes of a store whose arrays lie in files of whole chunks; the last chunk of each is padded."""
    chunk = {spec.name: chunk_rows(spec, header.rows, chunk_multiple) for spec in header.arrays}
    padded = {name: -(-header.rows // rows) * rows for name, rows in chunk.items()}
    arrays = {spec.name: padded[spec.name] * header.views * spec.row_bytes for spec in header.arrays}
    constants = {cut.spec.name: len(list(cut.pieces())) * cut.file_bytes for cut in cuts(header)}
    return {**arrays, **constants, REST: _rest(header, table)}


def in_one_piece(header: Header, table: RowTable, chunk_multiple: int) -> dict[str, int]:
    """Return the bytes of a store whose arrays lie in one piece each, whatever the chunks they were written in."""
    arrays = {spec.name: header.rows * header.views * spec.row_bytes for spec in header.arrays}
    arrays |= {spec.name: spec.row_bytes for spec in header.constants}
    return {**arrays, REST: _rest(header, table)}


def _rest(header: Header, table: RowTable) -> int:
    return sum(map(len, empty_store(header, table, 1).values()))
