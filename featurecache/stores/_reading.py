"""Committed rows of a Zarr store from its chunk files: mapped one behind the other where they can be, read through zarr else."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import StoreContentsError, StoreDamagedError
from featurecache.features import ArraySpec, Header
from featurecache.stores._choosing import spec_called
from featurecache.stores._chunks import chunk_key
from featurecache.stores._explaining import reading
from featurecache.stores._ledger import Committed
from featurecache.stores._mapping import can_map, map_files

if TYPE_CHECKING:
    import zarr


class StoredRows:
    """What the ledger calls committed, and nothing else; maps are kept until `forget`."""

    def __init__(self, path: Path, header: Header, state: Committed, array: Callable[[str], zarr.Array[Any]]) -> None:
        self.path, self.header, self._state, self._array = path, header, state, array
        self._maps: dict[tuple[str, int], npt.NDArray[Any]] = {}

    @cached_property
    def chunk_rows(self) -> dict[str, int]:
        """Array -> rows of a chunk."""
        with reading(self.path):
            return {spec.name: int(self._array(spec.name).chunks[0]) for spec in self.header.arrays}

    def read(self, array: str, rows: npt.NDArray[np.int64] | slice, view: int) -> npt.NDArray[Any]:
        """Return the stored values of `rows`, (B, ...) in storage dtype, in the order asked."""
        if (array, view) in self._maps:
            return self._maps[array, view][rows]
        spec = spec_called(self.path, self.header, array)
        self._check_committed(array, view, rows)
        with reading(self.path):
            mapped = self._map(spec, view)
            if mapped is not None:
                return mapped[rows]
            values = self._array(array)
            picked = values[rows, view] if isinstance(rows, slice) else values.oindex[rows, view]
            self._files(spec, view)  # again: zarr takes a chunk that went meanwhile for zeros
        return np.asarray(picked)

    def mapped(self, array: str, view: int) -> npt.NDArray[Any] | None:
        """Return all N rows as one array over the mapped chunk files, or None where chunks cannot be mapped in a row."""
        spec = spec_called(self.path, self.header, array)
        self._check_committed(array, view, slice(None))
        with reading(self.path):
            return self._map(spec, view)

    def _check_committed(self, array: str, view: int, rows: npt.NDArray[np.int64] | slice) -> None:
        gaps = self._state.missing([array], [view], self.header.rows)
        if not gaps:
            return
        wanted = np.arange(self.header.rows)[rows]
        absent = np.concatenate([wanted[(wanted >= gap.start) & (wanted < gap.stop)] for gap in gaps])
        if len(absent):
            raise StoreContentsError(
                f"{self.path} lacks {len(absent)} of the {len(wanted)} rows asked of {array}, the first is row {absent[0]}. "
                "Run the same extract-features command again; it goes on where it stopped."
            )

    def _map(self, spec: ArraySpec, view: int) -> npt.NDArray[Any] | None:
        if (spec.name, view) in self._maps:
            return self._maps[spec.name, view]
        rows, paths = self.chunk_rows[spec.name], self._files(spec, view)
        if not can_map(rows * spec.row_bytes, len(paths)):
            return None
        padded = map_files(paths, rows * spec.row_bytes, (len(paths) * rows, *spec.tail), spec.storage_dtype)
        mapped = padded[: self.header.rows]
        # chunks that are still to come would be zeros in a map that is kept
        if not self._state.missing([spec.name], [view], self.header.rows):
            self._maps[spec.name, view] = mapped
        return mapped

    def _files(self, spec: ArraySpec, view: int) -> list[Path | None]:
        """Return the files of all chunks of a view in order, each there and of its size; None: nothing is committed to it."""
        count = -(-self.header.rows // self.chunk_rows[spec.name])
        return [self._chunk(spec, chunk_key(number, view, len(spec.tail))) for number in range(count)]

    def _chunk(self, spec: ArraySpec, key: str) -> Path | None:
        """Return the file of a chunk that holds committed rows, else None.

        Raises:
            StoreDamagedError: it is gone or cut off; a reader would take what is not there for zeros.
        """
        if key not in self._state.chunks.get(spec.name, {}):
            return None
        file, size = self.path / spec.name / key, self.chunk_rows[spec.name] * spec.row_bytes
        found = file.stat().st_size if file.exists() else None
        if found != size:
            seen = "is gone" if found is None else f"has {found} bytes instead of {size}"
            raise StoreDamagedError(f"{file} {seen}. Mend it with: featurecache verify {self.path} --repair")
        return file

    def block(self, spec: ArraySpec, rows: slice) -> npt.NDArray[Any]:
        """Return (B, V, ...) of the rows of one chunk, read from its files and not mapped."""
        number = rows.start // self.chunk_rows[spec.name]
        with reading(self.path):
            values = [self._of_chunk(spec, number, view, rows) for view in range(self.header.views)]
        return np.stack(values, axis=1)

    def _of_chunk(self, spec: ArraySpec, number: int, view: int, rows: slice) -> npt.NDArray[Any]:
        file = self._chunk(spec, chunk_key(number, view, len(spec.tail)))
        if file is None:
            raise StoreContentsError(f"{self.path} lacks rows {rows.start} to {rows.stop - 1} of {spec.name}.")
        return np.fromfile(file, spec.storage_dtype).reshape(-1, *spec.tail)[: rows.stop - rows.start]

    def forget(self) -> None:
        """Let go of the maps; arrays that were handed out stay valid."""
        self._maps.clear()
