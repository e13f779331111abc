"""Who may write, and who is refused: by the kernel's lock on one machine, by the age of a lease on several."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from featurecache.errors import ConfigError, StoreBusyError, StoreError
from featurecache.stores import Shard, create_store, open_store
from featurecache.stores._locking import SILENT_SECONDS
from featurecache.stores._shards import ledger_of
from tests.featurecache.stores.samples import BATCH, ROWS, files, fill, header, table, values


def left_by(host: str, path: Path, *, silent: float) -> None:
    """Make a lock such as a killed process of another machine leaves."""
    then = time.time() - silent
    path.write_text(f"4711 {host} {int(then) - 60} 64\n".ljust(512))
    os.utime(path, (then, then))


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("featurecache.stores._chunks.PAGE", 64)  # so that rows this narrow make several chunks
    path = tmp_path / "x.zarr"
    store = create_store(path, header(), table(), chunk_multiple=BATCH)
    fill(store, stop_after=2)
    store.commit()
    store.close()
    return path


@pytest.mark.parametrize("shard", [None, Shard(0, 2)])
@pytest.mark.parametrize("take_over", [False, True])
def test_a_young_lease_of_another_machine_is_never_taken(begun, monkeypatch, shard, take_over):
    monkeypatch.setattr("featurecache.stores._locking.WAIT_SECONDS", 0)
    left_by("elsewhere", begun / "writer.lock", silent=20)

    with pytest.raises(StoreBusyError, match=r"process 4711 on elsewhere, for 8\d s.*It was heard of 2\d s ago"):
        open_store(begun, writable=True, shard=shard, take_over=take_over)


def test_a_stale_lease_of_another_machine_is_taken_over_when_that_is_asked(begun):
    left_by("elsewhere", begun / "writer.lock", silent=SILENT_SECONDS + 5)

    with pytest.raises(StoreBusyError, match=r"4711 on elsewhere, .* not heard of for 30\d s.*give --take-over"):
        open_store(begun, writable=True)
    store = open_store(begun, writable=True, take_over=True)
    assert store.interrupted_at == 64
    store.close()
    open_store(begun, writable=True).close()


def test_a_stale_lease_of_a_range_stops_only_what_overlaps_it(begun):
    first = open_store(begun, writable=True, shard=Shard(0, 2))
    rows = first.share
    first.close()
    left_by("elsewhere", begun / f"writer.{rows.start}-{rows.stop}.lock", silent=SILENT_SECONDS + 5)

    open_store(begun, writable=True, shard=Shard(1, 2)).close()
    with pytest.raises(StoreBusyError, match=f"rows 0 to {rows.stop - 1}, was being written by process 4711"):
        open_store(begun, writable=True, shard=Shard(0, 2))
    with pytest.raises(StoreBusyError, match="was being written by process 4711"):
        open_store(begun, writable=True)
    open_store(begun, writable=True, shard=Shard(0, 2), take_over=True).close()


def test_a_lock_that_was_given_back_is_no_lease_whatever_machine_it_was(begun):
    left_by("elsewhere", begun / "writer.lock", silent=1)
    (begun / "writer.lock").write_text("4711 elsewhere 5 64 left\n".ljust(512))

    store = open_store(begun, writable=True)

    assert store.interrupted_at == 64
    store.close()


def test_writers_of_two_shares_stand_beside_each_other_and_none_of_the_whole(begun):
    first = open_store(begun, writable=True, shard=Shard(0, 2))
    second = open_store(begun, writable=True, shard=Shard(1, 2))

    with pytest.raises(StoreBusyError, match=f"rows 0 to .* process {os.getpid()} on "):
        open_store(begun, writable=True)
    assert first.share.stop == second.share.start
    assert second.share.stop == ROWS
    first.close()
    second.close()


def test_a_share_neither_extends_nor_seals_the_store(begun):
    store = open_store(begun, writable=True, shard=Shard(0, 2))

    with pytest.raises(StoreError, match="opened for a share of its rows"):
        store.extend(header(), chunk_multiple=BATCH)
    store.close()


def test_a_ledger_of_a_share_that_is_in_the_stores_own_already_counts_no_more(begun, tmp_path):
    store = open_store(begun, writable=True, shard=Shard(0, 2))
    for start in range(64, store.share.stop, BATCH):
        rows = range(start, start + BATCH)
        store.write(rows, values(rows), {})
    store.commit()
    name = ledger_of(store.share)
    store.close()
    kept = (begun / name).read_bytes()
    open_store(begun, writable=True).close()
    assert not (begun / name).exists()
    before = open_store(begun).missing()

    (begun / name).write_bytes(kept)  # a kill came between the two steps

    assert open_store(begun).missing() == before
    open_store(begun, writable=True).close()
    assert not (begun / name).exists()
    assert open_store(begun).missing() == before


@pytest.mark.parametrize("text", ["2/2", "-1/2", "x", "1", "0/0"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ConfigError, match=r"shard must be i/n, with i from 0 to n - 1, or auto"):
        Shard.parsed(text)


def test_auto_is_what_torchrun_set(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="RANK and WORLD_SIZE.*not set here"):
        Shard.parsed("auto")

    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")

    assert Shard.parsed("auto") == Shard(3, 4)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_shares_are_disjoint_whole_chunks_and_together_all_rows(count):
    shares = [Shard(number, count).rows(1000, [32, 128, 64]) for number in range(count)]

    assert [row for share in shares for row in share] == list(range(1000))
    assert all(share.start % 128 == 0 for share in shares if share)


def test_a_finished_store_keeps_nothing_of_the_shares(begun):
    store = open_store(begun, writable=True, shard=Shard(0, 2))
    store.close()
    store = open_store(begun, writable=True)
    fill(store)
    store.finish()
    store.close()

    assert not [name for name in files(begun) if name.startswith(("ledger.0", "writer."))]
