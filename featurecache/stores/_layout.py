"""The empty store: Zarr's own metadata for every array, and the row table, as a mapping of paths to bytes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.features import ArraySpec, Header
from featurecache.stores._chunks import chunk_rows
from featurecache.stores._constants import Cut, cuts

if TYPE_CHECKING:
    import zarr
    from zarr.storage import MemoryStore

    from featurecache.datasets import RowTable

TABLE_CHUNK, SMALLEST_TABLE_CHUNK = 65536, 1024
TEXT_COLUMNS = ("sample_id", "split", "domain", "group")
TABLE_COLUMNS = (*TEXT_COLUMNS, "target")


def empty_store(header: Header, table: RowTable, chunk_multiple: int) -> dict[str, bytes]:
    """Return path -> content of every file of a store that holds no features yet, nor values of its classes.

    Written by zarr itself into memory, so that any Zarr v3 reader understands them; made durable by the caller.
    """
    return {**empty_metadata(header, table, chunk_multiple), **dict(table_pieces(table, table_chunk(header.rows)))}


def empty_metadata(header: Header, table: RowTable, chunk_multiple: int) -> dict[str, bytes]:
    """Return path -> content of the metadata files of a store that holds nothing yet, not even its row table."""
    import zarr
    from zarr.storage import MemoryStore

    memory, chunk = MemoryStore(), table_chunk(header.rows)
    root = zarr.create_group(memory, zarr_format=3, attributes={"featurecache": header.to_json()})
    _add_arrays(root, header, header.arrays, chunk_multiple)
    _add_constants(root, cuts(header))
    for name in TEXT_COLUMNS:
        _text(root, name, len(table), chunk)
    _column(root, "target", np.asarray(table.target), chunk)
    _text(root, "status", header.rows, chunk)
    _consolidate(memory)
    return contents(memory)


def extended_metadata(metadata: Mapping[str, bytes], header: Header, chunk_multiple: int) -> dict[str, bytes]:
    """Return path -> content of the metadata files that are new, or new in content, once a store has this header.

    `metadata` are those of the store as it is; they are written by zarr itself again, in memory, as if from the start.
    """
    memory, root = _in_memory(metadata)
    for spec in header.arrays:
        if f"{spec.name}/zarr.json" in metadata:
            array: Any = root[spec.name]
            array.resize((header.rows, header.views, *spec.tail))
    _add_arrays(
        root, header, [spec for spec in header.arrays if f"{spec.name}/zarr.json" not in metadata], chunk_multiple
    )
    _add_constants(root, [cut for cut in cuts(header) if f"{cut.spec.name}/zarr.json" not in metadata])
    root.attrs.put({"featurecache": header.to_json()})
    _consolidate(memory)
    return {name: content for name, content in contents(memory).items() if metadata.get(name) != content}


def grown_store(metadata: Mapping[str, bytes], header: Header, table: RowTable) -> dict[str, bytes]:
    """Return path -> content of all metadata and of the row table, once a store with these metadata has more rows.

    Chunks stay as they are, the row table's too.
    """
    memory, root = _in_memory(metadata)
    with _quiet():
        for name in (*(spec.name for spec in header.arrays), *TABLE_COLUMNS, "status"):
            array: Any = root[name]
            array.resize((header.rows, *array.shape[1:]))
            if name in TEXT_COLUMNS:
                array[:] = np.asarray(getattr(table, name), dtype=np.dtypes.StringDType())
            if name == "target":
                array[:] = np.asarray(table.target)
        root.attrs.put({"featurecache": header.to_json()})
        _consolidate(memory)
    return contents(memory)


def table_files(table: RowTable, chunk: int) -> dict[str, bytes]:
    """Return path -> content of the chunks of the row table, so many rows in each."""
    return dict(table_pieces(table, chunk))


def table_pieces(table: RowTable, chunk: int) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the chunks of the row table one by one: zarr makes an object of every text it encodes."""
    for name in TABLE_COLUMNS:
        values = getattr(table, name)
        for number, start in enumerate(range(0, len(values), chunk)):
            yield column_piece(name, number, values[start : start + chunk], chunk)


def column_piece(name: str, number: int, values: Any, chunk: int) -> tuple[str, bytes]:
    """Return path and content of one chunk of a column, so many rows in each; the last one may be given fewer.

    The bytes are those of zarr's codecs `bytes` (little-endian) and `vlen-utf8`, which takes milliseconds to begin with one.
    """
    if name == "target":
        given = np.asarray(values)
        rows = np.zeros((chunk, *given.shape[1:]), given.dtype.newbyteorder("<"))
        rows[: len(given)] = given
        return f"{name}/c/{number}{'/0' * (given.ndim - 1)}", rows.tobytes()
    texts = [str(value).encode() for value in values]
    parts = [part for text in texts for part in (len(text).to_bytes(4, "little"), text)]
    return f"{name}/c/{number}", b"".join([chunk.to_bytes(4, "little"), *parts, bytes(4 * (chunk - len(texts)))])


def table_chunk(rows: int) -> int:
    """Return the rows of a chunk of the row table; a store that is small now may grow."""
    return min(max(rows, SMALLEST_TABLE_CHUNK), TABLE_CHUNK)


def _in_memory(metadata: Mapping[str, bytes]) -> tuple[MemoryStore, zarr.Group]:
    """Return a store in memory that holds these metadata, and its root, open for changes."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    memory = MemoryStore({name: default_buffer_prototype().buffer.from_bytes(text) for name, text in metadata.items()})
    return memory, zarr.open_group(memory, mode="r+", zarr_format=3, use_consolidated=False)


def _consolidate(memory: MemoryStore) -> None:
    with warnings.catch_warnings():  # consolidated metadata is not yet in the v3 specification; readers may ignore it
        warnings.simplefilter("ignore")
        import zarr

        zarr.consolidate_metadata(memory)


def _add_arrays(root: zarr.Group, header: Header, specs: Iterable[ArraySpec], chunk_multiple: int) -> None:
    for spec in specs:
        rows = chunk_rows(spec, header.rows, chunk_multiple)
        root.create_array(
            spec.name,
            shape=(header.rows, header.views, *spec.tail),
            chunks=(rows, 1, *spec.tail),
            dtype=np.dtype(spec.storage_dtype).newbyteorder("="),
            compressors=None,
            fill_value=0,
            attributes={"logical_dtype": spec.dtype},
            config={"write_empty_chunks": True},
        )


def _add_constants(root: zarr.Group, plan: Iterable[Cut]) -> None:
    for cut in plan:
        root.create_array(
            cut.spec.name,
            shape=cut.spec.tail,
            chunks=cut.chunk,
            dtype=np.dtype(cut.spec.storage_dtype).newbyteorder("="),
            compressors=None,
            fill_value=0,
            attributes={"logical_dtype": cut.spec.dtype},
            config={"write_empty_chunks": True},
        )


def status_files(status: Sequence[str], chunk: int) -> dict[str, bytes]:
    """Return path -> content of the chunks of the array `status`, so many rows in each."""
    starts = range(0, len(status), chunk)
    return dict(column_piece("status", i, status[start : start + chunk], chunk) for i, start in enumerate(starts))


def _text(root: zarr.Group, name: str, rows: int, chunk: int) -> zarr.Array[Any]:
    with _quiet():
        return root.create_array(
            name, shape=(rows,), chunks=(chunk,), dtype="string", compressors=None,
            config={"write_empty_chunks": True},
        )  # fmt: skip


def column(array: Any, rows: slice = slice(None)) -> npt.NDArray[Any]:
    """Return rows of a column of the row table, a chunk at a time: zarr makes an object of every text it decodes."""
    first, last, _ = rows.indices(array.shape[0])
    kind = np.dtypes.StringDType() if array.dtype.kind in "TO" else array.dtype
    found = np.empty((max(last - first, 0), *array.shape[1:]), kind)
    for start in range(first, last, TABLE_CHUNK):
        stop = min(start + TABLE_CHUNK, last)
        found[start - first : stop - first] = array[start:stop]
    return found


def _column(root: zarr.Group, name: str, values: npt.NDArray[Any], chunk: int) -> zarr.Array[Any]:
    chunks = (chunk, *values.shape[1:])
    return root.create_array(
        name, shape=values.shape, chunks=chunks, dtype=values.dtype, compressors=None, fill_value=0,
        config={"write_empty_chunks": True},
    )  # fmt: skip


def _quiet() -> warnings.catch_warnings[None]:
    # zarr warns that variable-length text is an extension of the v3 specification
    return warnings.catch_warnings(action="ignore")


def contents(memory: MemoryStore) -> dict[str, bytes]:
    """Return path -> bytes of a memory store."""
    import asyncio

    from zarr.core.buffer import default_buffer_prototype

    async def read() -> dict[str, bytes]:
        found = {}
        async for key in memory.list():
            value = await memory.get(key, default_buffer_prototype())
            if value is not None:
                found[key] = value.to_bytes()
        return found

    return dict(sorted(asyncio.run(read()).items()))
