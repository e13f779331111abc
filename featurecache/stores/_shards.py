"""Many writers of one store: which rows each of them writes, and the ledgers they keep beside that of the store.

A share is made of whole chunks of every array, so that no two writers touch one file. Each writer commits to a ledger of
its own, whose first line says of which ledger of the store it is the continuation. Whoever is alone with the store puts
them into its ledger; from then on, their first line is untrue and they count no more, whatever a kill leaves of them.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path

from featurecache.errors import ConfigError
from featurecache.files import sync_folder
from featurecache.stores import _ledger


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` writers of a store, counted from 0."""

    index: int
    count: int

    @classmethod
    def parsed(cls, text: str) -> Shard:
        """Return the shard that "i/n" means; "auto" is what torchrun tells its processes in RANK and WORLD_SIZE.

        Raises:
            ConfigError: it is neither, or there is no such shard.
        """
        named = f"{os.environ.get('RANK', '')}/{os.environ.get('WORLD_SIZE', '')}" if text == "auto" else text
        match = re.fullmatch(r"(\d+)/(\d+)", named.strip())
        if match and int(match[1]) < int(match[2]):
            return cls(int(match[1]), int(match[2]))
        if text == "auto":
            raise ConfigError(
                ["shard auto reads RANK and WORLD_SIZE, as torchrun sets them; they are not set here. Give i/n instead"]
            )
        raise ConfigError([f"shard must be i/n, with i from 0 to n - 1, or auto; got {text!r}"])

    def rows(self, rows: int, chunk_rows: Sequence[int]) -> range:
        """Return this writer's part of so many rows, cut between chunks of every array; it may be empty."""
        unit = lcm(*chunk_rows)
        units = -(-rows // unit)
        edges = [min(number * units // self.count * unit, rows) for number in (self.index, self.index + 1)]
        return range(*edges)


def ledger_of(rows: range) -> str:
    """Return the name of the ledger of a share."""
    return f"ledger.{rows.start}-{rows.stop}.jsonl"


def within(known: Mapping[str, tuple[int, int]], chunk_rows: int, rows: range | None) -> Mapping[str, tuple[int, int]]:
    """Return of the chunks of an array those that lie in `rows`; None: all."""
    if rows is None:
        return known
    return {key: found for key, found in known.items() if int(key.split("/")[1]) * chunk_rows in rows}


@dataclass(frozen=True, slots=True)
class ShareLedger:
    """What the writer of a share has committed."""

    of: int
    """CRC-32 of the ledger of the store when it began."""
    records: Sequence[_ledger.Record]


def share_ledgers(folder: Path) -> list[ShareLedger]:
    """Return the ledgers of shares that can be read; one whose first line is torn has nothing in it yet."""
    found = []
    for path in sorted(folder.glob("ledger.*-*.jsonl"), key=lambda path: path.name):
        try:
            with path.open("rb") as file:
                records, _ = _ledger.good_records(file)
        except FileNotFoundError:  # it was put into the ledger of the store at this moment
            continue
        if records:
            found.append(ShareLedger(records[0]["of"], records[1:]))
    return found


def continued(records: list[_ledger.Record], shares: Sequence[ShareLedger]) -> list[_ledger.Record]:
    """Return the records of a store's ledger and then those of the shares that continue it."""
    if not shares:
        return records
    crc = checksum(records)
    return [*records, *(record for share in shares if share.of == crc for record in share.records)]


def checksum(records: Sequence[_ledger.Record]) -> int:
    """Return the CRC-32 of the ledger that holds these records."""
    return zlib.crc32(b"".join(map(_ledger.encode, records)))


def begin_share(folder: Path, ledger: Path, rows: range) -> None:
    """Make the ledger of a share one that continues the store's, with what an earlier writer committed to it."""
    of = checksum(_ledger.read_records(ledger)[0])
    path = folder / ledger_of(rows)
    if path.exists():
        with open(path, "rb") as file:
            records, size = _ledger.good_records(file)
        if records and records[0]["of"] == of:
            _ledger.cut(path, size)
            return
    _ledger.replace(path, [{"kind": "share", "of": of, "rows": [rows.start, rows.stop]}])


def gather(folder: Path, ledger: Path) -> None:
    """Put what the shares committed into the ledger of the store, and remove their files; nobody else may write."""
    paths = list(folder.glob("ledger.*-*.jsonl"))
    if not paths:
        return
    records, _ = _ledger.read_records(ledger)
    together = continued(records, share_ledgers(folder))
    if len(together) > len(records):
        _ledger.replace(ledger, together)
    for path in paths:
        path.unlink(missing_ok=True)
    sync_folder(folder)
