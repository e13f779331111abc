"""Making a store, and adding arrays to one: whole or not at all, whatever ends the process in between.

A new store is written under a temporary name and renamed. An extension is one ledger line that carries the new metadata;
the files are replaced after it, the root last, and whoever writes next finishes that where it was cut off. Values of the
classes are written before that line, and are nothing until it is there.
"""

from __future__ import annotations

import os
import shutil
import socket
import zlib
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.errors import StoreDamagedError, StoreError, StoreMismatchError
from featurecache.features import Header
from featurecache.files import sync_folder, write_atomic
from featurecache.stores import _ledger
from featurecache.stores._constants import ClassValues, cuts, remove_unclaimed, sync_constants, write_constants
from featurecache.stores._layout import empty_metadata, extended_metadata, table_chunk, table_pieces
from featurecache.stores._second_copy import COPY, contradicts, encoded, keep_copy
from featurecache.stores._shards import continued, gather, share_ledgers

if TYPE_CHECKING:
    from featurecache.datasets import RowTable

LEDGER, ROOT, STAGED = "ledger.jsonl", "zarr.json", ".grown.tmp"
RESPLIT = "resplit"
"""Key of the ledger lines that change the splits of the rows and nothing else."""


def create_files(
    path: Path, header: Header, table: RowTable, chunk_multiple: int, constants: ClassValues | None
) -> None:
    """Write a store without rows under a temporary name, then give it its own; `constants` is asked in between.

    Raises:
        StoreError: something is there already, or the folder cannot be written.
    """
    if path.exists():
        raise StoreError(f"{path} exists already. Give another --out, or remove it first.")
    temporary = temporary_name(path)
    try:
        new = [folder for folder in path.parents if not folder.exists()]
        remove_leftovers(path)
        write_empty(temporary, header, table, chunk_multiple, constants)
        os.rename(temporary, path)
        for folder in [path, *new]:
            sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise StoreError(
            f"cannot create {path}: {error.strerror or error}. Nothing was left behind; give an --out that can be written."
        ) from error


def write_empty(
    folder: Path, header: Header, table: RowTable, chunk_multiple: int, constants: ClassValues | None
) -> None:
    """Write a store without rows, durably, into a folder that is not there yet."""
    metadata, sums = empty_metadata(header, table, chunk_multiple), dict[str, int]()
    for name, content in chain(metadata.items(), table_pieces(table, table_chunk(header.rows))):
        write_durably(folder / name, content)
        sums[name] = zlib.crc32(content)
    sums |= write_constants(folder, cuts(header), constants, write_durably)
    ledger = _ledger.encode({"kind": "created", "files": sums})
    write_durably(folder / COPY, encoded(metadata, ledger))
    write_durably(folder / LEDGER, ledger)
    for place in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync_folder(place)


def temporary_name(path: Path) -> Path:
    """Return the name beside `path` under which this process makes what is to stand there."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def write_durably(target: Path, content: bytes) -> None:
    """Write a file and fsync it; its name is durable once its folder is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove_leftovers(path: Path) -> None:
    """Remove what creations of the same store left that were killed on this machine."""
    for folder in path.parent.glob(f".{path.name}.{socket.gethostname()}.*.tmp"):
        process = folder.suffixes[-2].removeprefix(".")
        if process.isdigit() and (int(process) == os.getpid() or not _is_running(int(process))):
            shutil.rmtree(folder, ignore_errors=True) if folder.is_dir() else folder.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def extend_files(
    path: Path, state: _ledger.Committed, header: Header, chunk_multiple: int, constants: ClassValues | None
) -> None:
    """Make the store at `path` one with this header; the caller holds the lock and opens it again.

    Arrays of the classes that it does not hold yet are asked of `constants` and written first.

    Raises:
        StoreMismatchError: the new header would change or drop what is there.
    """
    metadata = {name: checked(path, name, crc) for name, crc in state.files.items() if Path(name).name == ROOT}
    files = extended_metadata(metadata, header, chunk_multiple)
    # more views are a longer axis of the same chunks
    changed = files.keys() & metadata.keys() - {ROOT, *(f"{spec.name}/{ROOT}" for spec in header.arrays)}
    if changed:
        raise StoreMismatchError(f"{path} cannot be extended: {', '.join(sorted(changed))} would change.")
    texts = {name: content.decode() for name, content in files.items()}
    sums = _new_constants(path, state, header, constants)
    _ledger.append(path / LEDGER, {"kind": "extended", "files": texts, **({"sums": sums} if sums else {})})
    replace_metadata(path, texts)


def _new_constants(
    path: Path, state: _ledger.Committed, header: Header, constants: ClassValues | None
) -> dict[str, int]:
    """Write the arrays of the classes that the store lacks, durably; return path -> CRC-32."""
    lacking = [cut for cut in cuts(header) if f"{cut.spec.name}/{ROOT}" not in state.files]
    if not lacking:
        return {}
    try:
        sums = write_constants(path, lacking, constants, write_durably)
        sync_constants(path)
    except BaseException:
        remove_unclaimed(path, state.files)
        raise
    return sums


def replace_metadata(path: Path, files: Mapping[str, str]) -> None:
    """Write the metadata of an extension, the root last: until then, readers see the store before it."""
    for name in sorted(files, key=lambda name: (name == ROOT, name)):
        target = path / name
        new = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, files[name].encode())
        for folder in new:
            sync_folder(folder.parent)


def staged(path: Path, name: str) -> Path:
    """Return the temporary name of a piece of the row table until the ledger names it."""
    return path / f".{name.replace('/', '~')}{STAGED}"


def name_of(piece: Path) -> str:
    """Return the name that a piece has once it is `staged` no more."""
    return piece.name[1:].removesuffix(STAGED).replace("~", "/")


def unstage(path: Path, names: Iterable[str]) -> None:
    """Give their names to the pieces of the row table that the ledger names by now, as far as they have not got them."""
    for name in names:
        if staged(path, name).exists():
            target = path / name
            new = [folder for folder in target.parents if not folder.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged(path, name), target)
            for folder in {target.parent, *(folder.parent for folder in new)}:
                sync_folder(folder)


def checked(path: Path, name: str, crc: int) -> bytes:
    """Return the content of a file of metadata or of the row table.

    Raises:
        StoreDamagedError: it is not the file that was written.
    """
    try:
        content = (path / name).read_bytes()
    except FileNotFoundError:
        content = b""
    if zlib.crc32(content) != crc:
        raise StoreDamagedError(
            f"{path / name} is not the file that was written. Mend it with: featurecache verify {path} --repair"
        )
    return content


def snapshot(path: Path, *, resplit: bool = False) -> tuple[bytes, list[_ledger.Record], int]:
    """Return (root metadata, the records that belong to it, bytes of good ledger) as a reader may trust them.

    A writer may extend or seal the store at this moment: records after an extension whose root is not in place yet are
    left out, and where the two files do not belong together they are read again. With `resplit`, records behind it that
    only change the splits count, and the root is the one that the last of them carries.

    Raises:
        StoreDamagedError: the root was never the one that the ledger tells of, or the ledger is not what was written.
    """
    for _ in range(5):
        shares = share_ledgers(path)  # first: what is put into the ledger meanwhile is found there
        root = (path / ROOT).read_bytes() if (path / ROOT).exists() else b""
        records, good = _ledger.read_records(path / LEDGER)
        belonging = _ledger.as_of(records, ROOT, zlib.crc32(root))
        torn = contradicts(path, path / LEDGER)
        if belonging is not None and not torn:
            if resplit and (newest := newest_root(records, belonging)) is not None:
                root, belonging = newest, records
            whole = len(belonging) == len(records)
            return root, continued(belonging, shares) if whole else belonging, good
    raise StoreDamagedError(
        f"{path / (LEDGER if torn else ROOT)} is not the file that was written. Mend it with: "
        f"featurecache verify {path} --repair"
    )


def newest_root(records: list[_ledger.Record], belonging: list[_ledger.Record]) -> bytes | None:
    """Return the root that the last record carries, where all records behind the `belonging` ones only change the splits."""
    behind = records[len(belonging) :]
    if not behind or not all(record.get(RESPLIT) and ROOT in record["files"] for record in behind):
        return None
    text: str = behind[-1]["files"][ROOT]
    return text.encode()


def settle(path: Path) -> None:
    """Finish what a killed writer had begun: an extension's metadata, files under temporary names, a torn ledger line."""
    _, belonging, good = snapshot(path)
    records, _ = _ledger.read_records(path / LEDGER)
    files = _ledger.Committed.replay(records).files
    for record in records:
        if record["kind"] == "deleted":
            unstage(path, _ledger.chunk_files(record))
    for record in records[len(belonging) :]:
        if record["kind"] == "extended":
            unstage(path, record.get("sums", ()))
            replace_metadata(path, record["files"])
    for folder in {path, *((path / name).parent for name in files), path / "status/c"}:
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
    remove_unclaimed(path, files)
    _ledger.cut(path / LEDGER, good)
    gather(path, path / LEDGER)
    keep_copy(path, path / LEDGER)
