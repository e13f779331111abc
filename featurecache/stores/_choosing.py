"""What a user means by an array and a split: the array's spec, or what the store holds instead; what is stored as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import StoreContentsError
from featurecache.features import ArraySpec, Header, as_numbers


def spec_called(path: Path, header: Header, array: str) -> ArraySpec:
    """Return the spec of an array of the store at `path`.

    Raises:
        StoreContentsError: there is none of that name; lists those that there are.
    """
    try:
        return header.array(array)
    except KeyError:
        held = ", ".join(spec.name for spec in (*header.arrays, *header.constants))
        if array in [spec.name for spec in header.constants]:
            raise StoreContentsError(
                f"{array} of {path} holds classes and no rows: ask for constant({array!r})."
            ) from None
        raise StoreContentsError(f"{path} holds no array {array!r}; it holds {held}.") from None


def readable(store: Any, array: str, split: str | None, view: int) -> npt.NDArray[Any]:
    """Return the committed `ok` rows of one array, (N, ...), or an array of the classes; bfloat16 as float32.

    Raises:
        StoreContentsError: no such array, or a split or view of an array of the classes.
    """
    if array in [spec.name for spec in store.header.constants]:
        if split is not None or view:
            raise StoreContentsError(f"{array} of {store.path} holds classes and no rows: leave split and view out.")
        return as_numbers(store.constant(array), store.header.constant(array).dtype)
    spec_called(store.path, store.header, array)
    keep = store.readable([array], [view])
    if split is not None:
        keep &= np.asarray(store.table().split) == split
    return as_numbers(store.read(array, np.flatnonzero(keep), view), store.header.array(array).dtype)
