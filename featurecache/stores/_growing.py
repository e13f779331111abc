"""More rows in a store: behind those that are there, whole or not at all, whatever ends the process in between.

New pieces of the row table are written under temporary names; one ledger line, which carries the new metadata and the
checksums, makes them true; then they get their names, the root of the metadata last. Whoever writes next finishes that
where it was cut off. The row table keeps its chunks, so a reader of the store as it was reads the same rows out of the new.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.errors import StoreError
from featurecache.features import Header
from featurecache.files import sync_folder
from featurecache.stores import _ledger
from featurecache.stores._creation import LEDGER, ROOT, checked, replace_metadata, staged, unstage, write_durably
from featurecache.stores._layout import grown_store

if TYPE_CHECKING:
    from featurecache.datasets import RowTable


def grow_files(path: Path, state: _ledger.Committed, header: Header, table: RowTable) -> None:
    """Make the store at `path` one with this header and row table; the caller holds the lock and opens it again."""
    metadata = {name: checked(path, name, crc) for name, crc in state.files.items() if Path(name).name == ROOT}
    files = grown_store(metadata, header, table)
    texts = {name: content.decode() for name, content in files.items() if metadata.get(name) not in (None, content)}
    sums = {name: zlib.crc32(content) for name, content in files.items() if name not in metadata}
    new = [name for name, crc in sums.items() if state.files.get(name) != crc]
    for name in new:
        write_durably(staged(path, name), files[name])
    sync_folder(path)
    record = {"kind": "extended", "files": texts, "sums": {name: sums[name] for name in new}}
    _ledger.append(path / LEDGER, record)
    unstage(path, new)
    replace_metadata(path, texts)


def check_grows(held: Header, header: Header, before: Iterable[str], table: RowTable) -> None:
    """Refuse rows that do not continue those of the store.

    Raises:
        StoreError: says so.
    """
    ids = [str(name) for name in before]
    same = header.to_json() | {"rows": 0, "dataset": {}} == held.to_json() | {"rows": 0, "dataset": {}}
    if not same or len(table) != header.rows or list(map(str, table.sample_id[: len(ids)])) != ids:
        raise StoreError("a store grows by rows behind its own; nothing else of it may change")
