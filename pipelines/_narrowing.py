"""A store in fewer bits: float32 features as float16 or bfloat16, with the checks of an extraction."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featurecache.casting import stored_form
from featurecache.errors import StoreContentsError, StoreError
from featurecache.features import OF_THE_MODEL, ArraySpec, Header
from featurecache.files import write_atomic
from featurecache.provenance import PROVENANCE, note, provenance
from featurecache.stores import FeatureStore, Taken, explained, of_classes, open_store, store_exists, write_store

BLOCK = 4096


def narrow(source: FeatureStore, out: Path, dtype: str) -> bool:
    """Write the store in another dtype, and return whether `out` held all of this before, so that nothing was written.

    Raises:
        StoreContentsError: its features are not float32: more bits would add nothing, other 16 bits lose twice.
        FeatureValueError: a value or an array that the dtype cannot hold; names sample and array.
        StoreError: `out` is there and holds something else.
    """
    held = sorted({spec.dtype for spec in source.header.arrays})
    if held != ["float32"]:
        raise StoreContentsError(
            f"{source.path} holds {', '.join(held)}, and only float32 is converted: what 16 bits have lost no other dtype "
            "brings back. Extract again with the --dtype that you want."
        )
    header = _in_dtype(source.header, dtype)
    ids = [str(name) for name in source.table().sample_id]
    skipped = set(np.flatnonzero(source.status() != "ok").tolist())

    def cast(spec: ArraySpec, rows: range, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        gone = {row - rows.start: "" for row in skipped.intersection(rows)}
        return _cast(values, header.array(spec.name), ids[rows.start : rows.stop], gone)

    def constants(classes: range) -> dict[str, npt.NDArray[Any]]:
        names = header.class_names[classes.start : classes.stop]
        made = {}
        for spec in header.constants:
            whole = source.constant(spec.name)
            if spec.name in OF_THE_MODEL:
                made[spec.name] = whole
                continue
            values = np.moveaxis(of_classes(spec, whole, classes), -3, 0)
            made[spec.name] = np.moveaxis(_cast(values[:, None], spec, names, {})[:, 0], 0, -3)
        return made

    if store_exists(out):
        _check_same(source, out, header, cast)
        return True
    write_store(out, header, source.table(), [Taken(source, range(header.rows), 0)], constants, cast)
    return False


def tell(source: FeatureStore, out: Path, dtype: str) -> None:
    """Keep the provenance of the source in that of the narrower store, with a line of how it came about.

    What was told before, as by a run that a kill stopped behind this, is not told twice.
    """
    notes = open_store(out).notes
    with explained(f"write to {out}"):
        if any("converted" in line for line in provenance(notes)):
            return
        known = source.notes / PROVENANCE
        if known.exists() and not (notes / PROVENANCE).exists():
            notes.mkdir(exist_ok=True)
            write_atomic(notes / PROVENANCE, known.read_bytes())
        made = {"from": str(source.path), "dtype": dtype}
        note(notes, {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv, "converted": made})


def _in_dtype(header: Header, dtype: str) -> Header:
    def changed(specs: Sequence[ArraySpec]) -> tuple[ArraySpec, ...]:
        return tuple(spec if spec.name in OF_THE_MODEL else replace(spec, dtype=dtype) for spec in specs)

    return replace(header, arrays=changed(header.arrays), constants=changed(header.constants))


def _cast(values: npt.NDArray[Any], spec: ArraySpec, ids: Sequence[str], skipped: dict[int, str]) -> npt.NDArray[Any]:
    views = [{spec.name: torch.from_numpy(np.array(values[:, view]))} for view in range(values.shape[1])]
    return stored_form(views, [spec], ids, skipped)[spec.name]


def _check_same(source: FeatureStore, out: Path, header: Header, cast: Any) -> None:
    there = open_store(out)
    same = there.finished and there.header == header and list(there.status()) == list(source.status())
    for spec in source.header.arrays if same else ():
        for start in range(0, header.rows, BLOCK):
            rows = slice(start, min(start + BLOCK, header.rows))
            views = range(header.views)
            ours = cast(
                spec, range(rows.start, rows.stop), np.stack([source.read(spec.name, rows, v) for v in views], 1)
            )
            same = same and all(np.array_equal(ours[:, v], there.read(spec.name, rows, v)) for v in views)
    if not same:
        raise StoreError(f"{out} is there, and is not {source.path} as {header.arrays[0].dtype}. Give another --out.")
