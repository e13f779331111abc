"""What a kill leaves inside a store and no ledger names: temporary files, chunks of rows that were never committed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from featurecache.files import sync_folder
from featurecache.stores import _ledger
from featurecache.stores._creation import LEDGER, snapshot, temporary_name
from featurecache.stores._side import side_of


def is_store(path: Path) -> bool:
    """Return whether a store is at `path`, by its ledger or as one file."""
    if path.suffix in (".h5", ".hdf5"):
        return path.is_file() or (side_of(path) / LEDGER).exists()
    return (path / LEDGER).exists() and not path.name.endswith((".h5.zarr", ".hdf5.zarr"))


def left_in(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield what lies in the folder of a store and is no part of it, with what it is."""
    folder = side_of(path) if path.suffix in (".h5", ".hdf5") else path
    if not (folder / LEDGER).exists():
        return
    records = snapshot(folder)[1]
    state = _ledger.Committed.replay(records)
    claimed = {f"{array}/{key}" for array, keys in state.chunks.items() for key in keys} | set(state.files)
    begun = {name for record in records if record["kind"] == "deleted" for name in _ledger.chunk_files(record)}
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = str(file.relative_to(folder))
        if name.startswith(".") and any(name == f".{one.replace('/', '~')}.grown.tmp" for one in begun):
            continue  # the next writer gives it its name
        if file.name.startswith(".") and file.name.endswith(".tmp"):
            yield file, "unfinished file"
        elif name not in claimed and "/c/" in name and not name.startswith(("status/", "scores/")):
            yield file, "chunk without committed rows"


def remove_store(path: Path) -> None:
    """Remove a store under a temporary name, which the next creation of it, or `gc`, removes where this is cut off."""
    gone = temporary_name(path)
    os.rename(path, gone)
    sync_folder(path.parent)
    shutil.rmtree(gone)
