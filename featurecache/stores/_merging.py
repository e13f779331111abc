"""Stores made of the rows of others: shares that were written apart, disjoint sets of samples, rows in another dtype.

The new store is written under a temporary name, chunk by chunk, and every chunk that is read is compared with the ledger
of its store. So memory stays bounded, and what stands under the new name is whole.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import StoreDamagedError, StoreError
from featurecache.features import ArraySpec, Header
from featurecache.stores import _ledger
from featurecache.stores._chunks import ChunkWriter, chunk_key
from featurecache.stores._constants import ClassValues
from featurecache.stores._copying import replacing
from featurecache.stores._creation import LEDGER, remove_leftovers, temporary_name, write_empty
from featurecache.stores._gaps import Taken
from featurecache.stores._hdf5_file import assemble
from featurecache.stores._shards import within
from featurecache.stores._side import refuse_remains, side_of
from featurecache.stores.hdf5 import SUFFIXES as ONE_FILE
from featurecache.stores.zarr import ZarrStore
from featurecache.stores.zarr import open as open_zarr

if TYPE_CHECKING:
    from featurecache.datasets import RowTable

Cast = Callable[[ArraySpec, range, npt.NDArray[Any]], npt.NDArray[Any]]
"""Spec in the source, its rows, (B, V, ...) of them -> the same as the new store keeps them."""


def as_they_are(spec: ArraySpec, rows: range, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values that a new store keeps as the old one did."""
    return values


def write_store(
    out: Path, header: Header, table: RowTable, taken: Sequence[Taken], constants: ClassValues, cast: Cast = as_they_are
) -> None:
    """Write a store of rows of others at `out`: sealed where nothing is missing; whole or not at all.

    `taken` is ascending by place; between two of them may be rows that are nowhere yet, and then the second begins a chunk.

    Raises:
        StoreDamagedError: a source does not hold what was committed.
        StoreError: something is at `out`, or it cannot be written.
    """
    one_file = out.suffix in ONE_FILE
    place = side_of(out) if one_file else out
    for there in (out, place):
        if there.exists():
            raise StoreError(f"{there} exists already. Give another --out, or remove it first.")
    if one_file and _joined(taken) == [range(header.rows)]:
        _write_file(out, header, table, taken, constants, cast)
        return
    with replacing(place) as temporary:
        _write_folder(temporary, header, table, taken, constants, cast)


def _write_folder(
    folder: Path, header: Header, table: RowTable, taken: Sequence[Taken], constants: ClassValues, cast: Cast
) -> None:
    write_empty(folder, header, table, int(header.backbone.get("batch_size", 1)), constants)
    _fill(folder, header, taken, cast)
    store = open_zarr(folder, writable=True)
    try:
        if not store.missing():
            store.finish()
    finally:
        store.close()


def _write_file(
    out: Path, header: Header, table: RowTable, taken: Sequence[Taken], constants: ClassValues, cast: Cast
) -> None:
    """Write a complete store as one file; its Zarr side never gets a name of its own, so that a kill leaves no store."""
    refuse_remains(out)
    place = side_of(out)
    with replacing(out) as file:
        remove_leftovers(place)
        side = temporary_name(place)
        try:
            _write_folder(side, header, table, taken, constants, cast)
            assemble(ZarrStore(side), file)
        finally:
            shutil.rmtree(side, ignore_errors=True)


def _fill(folder: Path, header: Header, taken: Sequence[Taken], cast: Cast) -> None:
    """Write the chunks of every array, then the ledger lines that make them real."""
    fresh = ZarrStore(folder)
    chunks: dict[str, dict[str, tuple[int, int]]] = {}
    with ThreadPoolExecutor(8, thread_name_prefix="fsync") as pool:
        for spec in header.arrays:
            writer = ChunkWriter(folder, spec, fresh.chunk_rows[spec.name], {})
            try:
                for piece in taken:
                    for rows, values in committed_blocks(piece.store, piece.store.header.array(spec.name), piece.rows):
                        first = piece.at + rows.start - piece.rows.start
                        writer.write(
                            first, cast(piece.store.header.array(spec.name), rows, values), pool, range(header.views)
                        )
                for waiting in writer.settle(pool):
                    waiting.result()
            finally:
                writer.close()
            chunks[spec.name] = writer.state
    for span in _joined(taken):
        made = {
            name: {key: list(found) for key, found in within(known, fresh.chunk_rows[name], span).items()}
            for name, known in chunks.items()
        }
        record: _ledger.Record = {"kind": "commit", "rows": [span.start, span.stop], "chunks": made}
        record["skipped"] = {str(row): reason for piece in taken for row, reason in _skipped(piece) if row in span}
        gone = sorted(row for piece in taken for row in _deleted(piece) if row in span)
        _ledger.append(folder / LEDGER, {**record, **({"deleted": gone} if gone else {})})


def _joined(taken: Iterable[Taken]) -> list[range]:
    """Return the rows of a new store that are there, in as few spans as possible."""
    spans: list[range] = []
    for piece in taken:
        rows = range(piece.at, piece.at + len(piece.rows))
        if spans and spans[-1].stop == rows.start:
            spans[-1] = range(spans[-1].start, rows.stop)
        elif rows:
            spans.append(rows)
    return spans


def _skipped(piece: Taken) -> Iterator[tuple[int, str]]:
    for row, reason in piece.store.committed().skipped.items():
        if row in piece.rows:
            yield piece.at + row - piece.rows.start, reason


def _deleted(piece: Taken) -> Iterator[int]:
    for row in piece.store.committed().deleted:
        if row in piece.rows:
            yield piece.at + row - piece.rows.start


def committed_blocks(store: Any, spec: ArraySpec, rows: range) -> Iterator[tuple[range, npt.NDArray[Any]]]:
    """Yield (rows, (B, V, ...) values) of the chunks of one array, compared with the checksums of the ledger.

    Raises:
        StoreDamagedError: they are not the values that were committed.
    """
    sums, size = store.committed().chunks.get(spec.name, {}), store.chunk_rows[spec.name]
    for start in range(rows.start - rows.start % size, rows.stop, size):
        keys = [chunk_key(start // size, view, len(spec.tail)) for view in range(store.header.views)]
        count = min(sums[key][0] for key in keys)
        values = store.block(spec, slice(start, start + count))
        for view, key in enumerate(keys):
            known, crc = sums[key]
            whole = values if known == count else store.block(spec, slice(start, start + known))
            if zlib.crc32(np.ascontiguousarray(whole[:, view]).data) != crc:
                raise StoreDamagedError(
                    f"{store.path}: rows {start} to {start + known - 1} of {spec.name} are not the values that were "
                    "committed. Restore the store, or extract again."
                )
        inside = range(max(start, rows.start), min(start + count, rows.stop))
        yield inside, values[inside.start - start : inside.stop - start]
