"""The folder beside an HDF5 file in which the store is written, and the notes beside it: what is there, and what may go."""

from __future__ import annotations

import errno
import shutil
from filecmp import cmp
from pathlib import Path

from featurecache.errors import StoreError
from featurecache.files import sync_folder
from featurecache.stores._copying import NOTES
from featurecache.stores._creation import LEDGER
from featurecache.stores._explaining import explained
from featurecache.stores._hdf5_file import notes_of
from featurecache.stores._locking import LOCK, Lock, acquire


def side_of(path: Path) -> Path:
    """Return the Zarr store beside a file, in which it is written."""
    return path.with_name(f"{path.name}.zarr")


def refuse_remains(path: Path, notes: Path | None = None) -> None:
    """Refuse to begin where something is; notes of an earlier store would be taken for those of the new one."""
    if path.exists() or side_of(path).exists():
        there = path if path.exists() else side_of(path)
        raise StoreError(f"{there} exists already. Give another --out, or remove it first.")
    ours = notes_of(path)
    if ours.exists() and (notes is None or not _same_notes(ours, notes)):
        raise StoreError(
            f"{ours} exists already, with notes of a store that is gone. Remove it, or give another --out."
        )


def _same_notes(ours: Path, theirs: Path) -> bool:
    def named(folder: Path) -> list[Path]:
        return sorted(
            p.relative_to(folder) for n in NOTES for p in [folder / n, *(folder / n).rglob("*")] if p.is_file()
        )

    names = named(ours)
    return names == named(theirs) and all(cmp(ours / name, theirs / name, shallow=False) for name in names)


def locked(side: Path, *, take_over: bool = False) -> Lock:
    """Return the lock of a side; a side that is not there yet is made for it.

    Raises:
        StoreBusyError, StoreError: another process writes it, or the folder cannot be written.
    """
    with explained(f"write in {side.parent}"):
        side.mkdir(exist_ok=True)
    try:
        return acquire(side, take_over=take_over)
    except StoreError:
        if side.exists():
            raise
        return locked(side, take_over=take_over)  # the writer before us removed it between our two steps


def clear(side: Path) -> None:
    """Remove everything of a side but its lock; without its ledger it is no store any more, so that goes first."""
    (side / LEDGER).unlink(missing_ok=True)
    sync_folder(side)
    for entry in side.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def remove_empty(side: Path) -> None:
    """Remove a side that has become the file, unless the next writer is in it."""
    try:
        side.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):  # the next writer is there, or was
            raise
    sync_folder(side.parent)
