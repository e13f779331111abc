"""What a damaged store still knows of its rows: every value of the row table whose chunk is what was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.stores._layout import TABLE_COLUMNS
from featurecache.stores._verifying import Examined


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Rows of a store of which a part of the row table may be damaged."""

    columns: Mapping[str, npt.NDArray[Any]]
    """Column -> (N, ...) values, empty or zero where they are damaged."""
    sound: Mapping[str, npt.NDArray[np.bool_]]
    """Column -> (N,) whether a value is what was written."""
    deleted: frozenset[int]
    """Rows that were taken out for good."""


def kept_rows(folder: Path, found: Examined) -> Kept:
    """Return what the folder of a store still knows of its rows; its metadata must be mended by now."""
    import zarr

    assert found.state is not None
    damaged = {damage.file for damage in found.damages}
    columns: dict[str, npt.NDArray[Any]] = {}
    sound: dict[str, npt.NDArray[np.bool_]] = {}
    for name in TABLE_COLUMNS:
        array = zarr.open_array(str(folder / name), mode="r", zarr_format=3)
        is_text = array.dtype.kind in "TO"
        values = np.zeros(array.shape, np.dtypes.StringDType() if is_text else array.dtype)
        whole = np.zeros(len(values), bool)
        for number, start in enumerate(range(0, len(values), array.chunks[0])):
            key = "/".join([name, "c", str(number), *("0" for _ in array.shape[1:])])
            if key not in damaged:
                rows = slice(start, start + array.chunks[0])
                values[rows], whole[rows] = array[rows], True
        columns[name], sound[name] = values, whole
    return Kept(columns, sound, frozenset(found.state.deleted))
