"""How many bytes a store will take, before it is written: array -> bytes of its files, and everything else in one entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from featurecache.features import Header
from featurecache.stores._chunks import chunk_rows
from featurecache.stores._constants import cuts
from featurecache.stores._hdf5_block import room_for
from featurecache.stores._layout import empty_store
from featurecache.stores._second_copy import ROOT, SecondCopy, encoded

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
    return {**arrays, REST: _rest(header, table) + _block(header, table)}


def _rest(header: Header, table: RowTable) -> int:
    """Return the bytes of metadata and row table, and of their second copy."""
    files = empty_store(header, table, 1)
    copy = _copy(files)
    return sum(map(len, files.values())) + len(encoded(copy.metadata, copy.ledger))


def _block(header: Header, table: RowTable) -> int:
    """Return the bytes in front of HDF5 that are more than the second copy alone."""
    copy = _copy(empty_store(header, table, 1))
    return room_for(copy) - len(encoded(copy.metadata, copy.ledger))


def _copy(files: Mapping[str, bytes]) -> SecondCopy:
    """Return a second copy of about the size that it will have: a line of the ledger names every file."""
    metadata = {name: content for name, content in files.items() if name.endswith(ROOT)}
    return SecondCopy(metadata, bytes(sum(len(name) + 16 for name in files)))
