"""Rows deleted from a store, and stores made of the rows of others, in both formats. For kills see tests/faults."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from featurecache.datasets import RowTable
from featurecache.errors import StoreContentsError, StoreDamagedError, StoreError, StoreMismatchError
from featurecache.scoring import saved_scores
from featurecache.stores import Shard, create_store, left_in, open_store
from pipelines.delete import DeleteConfig
from pipelines.delete import run as delete
from pipelines.merge import MergeConfig
from pipelines.merge import run as merge
from tests.featurecache.stores.samples import BATCH, CLASSES, files, fill, said, speaking, values
from tests.featurecache.stores.samples import header as plain_header
from tests.featurecache.stores.samples import table as plain_table

ROWS = 200
GONE = (3, 40, 64, 199)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurecache.stores._chunks.PAGE", 64)


def header(rows: int = ROWS):
    return dataclasses.replace(speaking(rows), backbone={"name": "test", "batch_size": BATCH})


def table(rows: int = ROWS, first: int = 0) -> RowTable:
    made = plain_table(rows)
    return RowTable(
        sample_id=[f"id {row + first}" for row in range(rows)], target=made.target, split=made.split,
        domain=made.domain, group=made.group,
    )  # fmt: skip


def made(path: Path, *, rows: int = ROWS, first: int = 0, shard: Shard | None = None, **changes) -> Path:
    named = dataclasses.replace(header(rows), dataset={"name": "data", "fingerprint": f"{first}"}, **changes)
    store = create_store(path, named, table(rows, first), chunk_multiple=BATCH, constants=said, shard=shard)
    for start in range(store.share.start, store.share.stop, BATCH):
        part = range(start, min(start + BATCH, store.share.stop))
        moved = values(range(part.start + first, part.stop + first))
        skipped = {40: "truncated"} if 40 in part else {}
        store.write(part, {name: moved[name] for name in moved}, skipped)
    store.commit()
    if shard is None:
        store.finish()
    store.close()
    return path


def ids(*rows: int) -> tuple[str, ...]:
    return tuple(f"id {row}" for row in rows)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_deleted_rows_are_zero_in_every_file_and_no_reader_yields_them(suffix, tmp_path):
    path = made(tmp_path / f"x{suffix}")
    scores = saved_scores(open_store(path))
    features = values(range(ROWS))
    needle = features["layers/cls/00"][3].tobytes()
    assert any(needle in content for content in files(path).values())

    report = delete(DeleteConfig(store=path, ids=ids(*GONE)))

    store = open_store(path)
    assert store.finished
    assert report.deleted == 4
    assert {row for row in range(ROWS) if store.status()[row] == "deleted"} == set(GONE)
    assert len(store.to_numpy("embedding")) == ROWS - 4
    kept = np.setdiff1d(np.arange(ROWS), GONE)
    for name, expected in features.items():
        assert not store.read(name, np.array(GONE)).any()
        np.testing.assert_array_equal(store.read(name, kept), expected[kept, 0])
    assert not any(needle in content for content in files(tmp_path).values())
    assert store.missing() == []
    assert saved_scores(store) != scores
    assert {score["rows"] for score in saved_scores(store)} == {ROWS - 4}


def test_a_deletion_done_twice_changes_nothing(tmp_path):
    path = made(tmp_path / "x.zarr")
    delete(DeleteConfig(store=path, ids=ids(3)))
    before = files(path)

    report = delete(DeleteConfig(store=path, ids=ids(3)))

    assert (report.deleted, report.before) == (0, 1)
    assert files(path) == before


def test_ids_come_from_a_file_and_an_unknown_one_deletes_nothing(tmp_path):
    path, listed = made(tmp_path / "x.zarr"), tmp_path / "ids.txt"
    listed.write_text("id 3\n\nid 5\n")
    before = files(path)

    with pytest.raises(StoreContentsError, match=r"holds no sample called 'id 999' \(1 of 3\); nothing was deleted"):
        delete(DeleteConfig(store=path, ids=(str(listed), "id 999")))
    assert files(path) == before
    assert delete(DeleteConfig(store=path, ids=(str(listed),))).deleted == 2


def test_a_damaged_chunk_stops_a_deletion_before_it_begins(tmp_path):
    path = made(tmp_path / "x.zarr")
    chunk = path / "embedding/c/0/0/0"
    content = bytearray(chunk.read_bytes())
    content[500] ^= 1
    chunk.write_bytes(content)

    with pytest.raises(StoreDamagedError, match="nothing was deleted"):
        delete(DeleteConfig(store=path, ids=ids(3)))
    assert "deleted" not in set(open_store(path).status())


def test_rows_deleted_from_an_unfinished_store_stay_deleted_when_it_goes_on(tmp_path):
    path = tmp_path / "x.zarr"
    store = create_store(path, plain_header(), plain_table(), chunk_multiple=BATCH)
    fill(store, stop_after=3)
    store.commit()
    store.delete([5])
    store.close()

    store = open_store(path, writable=True)
    assert store.missing() == [range(3 * BATCH, 1000)]
    fill(store)
    store.finish()
    store.close()

    assert open_store(path).status()[5] == "deleted"
    assert not open_store(path).read("embedding", slice(5, 6)).any()


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_shares_written_apart_are_merged_into_the_store_of_one_writer(suffix, tmp_path):
    parts = [made(tmp_path / f"{number}.zarr", shard=Shard(number, 3)) for number in range(3)]
    whole = made(tmp_path / f"whole{suffix}")

    report = merge(MergeConfig(stores=tuple(parts), out=tmp_path / f"x{suffix}"))

    assert report.left == 0
    assert files(tmp_path / f"x{suffix}") == files(whole)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.name.endswith(".h5.zarr")]


def test_shares_of_which_one_is_absent_are_a_store_that_goes_on(tmp_path):
    parts = [made(tmp_path / f"{number}.zarr", shard=Shard(number, 3)) for number in (0, 2)]
    missing = Shard(1, 3).rows(ROWS, list(open_store(parts[0]).chunk_rows.values()))

    report = merge(MergeConfig(stores=tuple(parts), out=tmp_path / "x.zarr"))

    assert report.left == len(missing)
    store = open_store(tmp_path / "x.zarr", writable=True)
    assert store.missing() == [missing]
    for start in range(missing.start, missing.stop, BATCH):
        part = range(start, min(start + BATCH, missing.stop))
        store.write(part, values(part), {})
    store.commit()
    store.finish()
    store.close()
    assert files(tmp_path / "x.zarr") == files(made(tmp_path / "whole.zarr"))


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_disjoint_samples_come_behind_each_other(suffix, tmp_path):
    one, other = made(tmp_path / f"one{suffix}"), made(tmp_path / f"other{suffix}", rows=90, first=ROWS)
    delete(DeleteConfig(store=other, ids=("id 207",)))

    merge(MergeConfig(stores=(one, other), out=tmp_path / f"x{suffix}"))

    store = open_store(tmp_path / f"x{suffix}")
    assert store.finished
    assert list(store.table().sample_id) == [f"id {row}" for row in range(ROWS + 90)]
    expected = values(range(ROWS + 90))["embedding"][:, 0]
    expected[207] = 0
    np.testing.assert_array_equal(store.read("embedding", slice(0, ROWS + 90)), expected)
    assert [store.status()[row] for row in (40, 207, 240)] == ["skipped: truncated", "deleted", "skipped: truncated"]
    np.testing.assert_array_equal(store.constant("text/eot"), said()["text/eot"])


def test_stores_that_cannot_be_one_are_refused_with_what_is_different(tmp_path):
    one = made(tmp_path / "one.zarr")
    twice = made(tmp_path / "twice.zarr", first=150)
    classes = made(tmp_path / "classes.zarr", first=500, class_names=(*CLASSES[:4], "yak"))
    kind = made(tmp_path / "kind.zarr", first=500, backbone={"name": "other", "batch_size": BATCH})
    part = made(tmp_path / "part.zarr", first=500, shard=Shard(0, 2))

    for other, error, message in (
        (twice, StoreMismatchError, "50 samples of .*twice.zarr are in .*one.zarr too, the first is 'id 150'"),
        (classes, StoreMismatchError, "class_names: .*gnu.* and .*yak"),
        (kind, StoreMismatchError, "backbone.name: 'test' and 'other'"),
        (part, StoreContentsError, "part.zarr is not finished"),
    ):
        with pytest.raises(error, match=message):
            merge(MergeConfig(stores=(one, other), out=tmp_path / "x.zarr"))
    with pytest.raises(StoreError, match="exists already"):
        merge(MergeConfig(stores=(one, made(tmp_path / "far.zarr", first=900)), out=twice))
    assert not (tmp_path / "x.zarr").exists()


def test_a_damaged_source_is_told_and_leaves_no_store(tmp_path):
    one, other = made(tmp_path / "one.zarr"), made(tmp_path / "other.zarr", first=ROWS)
    chunk = other / "layers/cls/00/c/1/0/0"
    content = bytearray(chunk.read_bytes())
    content[0] ^= 1
    chunk.write_bytes(content)

    with pytest.raises(StoreDamagedError, match=r"other.zarr: rows \d+ to \d+ of layers/cls/00 are not the values"):
        merge(MergeConfig(stores=(one, other), out=tmp_path / "x.zarr"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.zarr", "other.zarr"]


def test_what_a_kill_leaves_inside_a_store_is_found(tmp_path):
    path = tmp_path / "x.zarr"
    store = create_store(path, plain_header(), plain_table(), chunk_multiple=BATCH)
    fill(store, stop_after=1)
    store.commit()
    store.write(range(128, 160), values(range(128, 160)), {})  # never committed
    store.close()
    (path / ".zarr.json.17.tmp").write_bytes(b"x")

    left = {what for _, what in left_in(path)}

    assert left == {"chunk without committed rows", "unfinished file"}


def test_rows_of_old_arrays_stay_readable_while_an_extension_is_unfinished(tmp_path):
    from featurecache.features import ArraySpec

    path = made(tmp_path / "x.zarr")
    store = open_store(path, writable=True)
    more = dataclasses.replace(store.header, arrays=(*store.header.arrays, ArraySpec("logits", (3,), "float32")))
    store.extend(more, chunk_multiple=BATCH)
    store.close()

    reader = open_store(path)
    assert set(reader.status()) == {""}
    assert reader.to_numpy("embedding").shape == (ROWS - 1, 24)
    assert reader.to_numpy("logits").shape == (0, 3)
