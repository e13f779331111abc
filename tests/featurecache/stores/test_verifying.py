"""Every format is examined to the last byte and mended to the first one; what cannot be, is said and left."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

from featurecache.errors import StoreDamagedError
from featurecache.features import ArraySpec
from featurecache.stores import STORES, copy_store, create_store, examine_store, mend_store, open_store
from tests.featurecache.stores.samples import ARRAYS, BATCH, ROWS, files, fill, header, said, speaking, table, values

SUFFIXES = [STORES.load(name).SUFFIXES[0] for name in STORES.names()]


class Remade:
    """What the stores of the contract are made of; `shift` is added to every feature."""

    def __init__(self, shift: float = 0) -> None:
        self.shift = shift

    def table(self):
        return table()

    def classes(self, classes: range) -> Mapping[str, np.ndarray]:
        return {name: array + np.float32(self.shift) for name, array in said(classes).items()}

    def rows(
        self, rows: range, lacking: Mapping[ArraySpec, tuple[int, ...]], skipped: Mapping[int, str]
    ) -> Iterator[tuple[range, Mapping[str, np.ndarray]]]:
        for start in range(rows.start, rows.stop, BATCH):
            batch = range(start, min(start + BATCH, rows.stop))
            made = values(batch)
            yield batch, {spec.name: (made[spec.name] + self.shift).astype(spec.storage_dtype) for spec in lacking}


class OtherData(Remade):
    def table(self):
        return dataclasses.replace(table(), sample_id=[f"other/{row}.jpg" for row in range(ROWS)])


@pytest.fixture(params=SUFFIXES)
def finished(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"features{request.param}"
    store = create_store(path, speaking(), table(), chunk_multiple=BATCH, constants=said)
    fill(store)
    store.finish()
    store.close()
    return path


def change(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(content)


def test_a_finished_store_is_what_was_written_and_every_feature_is_read(finished):
    read: list[int] = []

    found = examine_store(finished, read.append)

    assert found.damages == found.strangers == found.remarks == ()
    assert found.finished
    assert sum(read) >= sum(ROWS * spec.row_bytes for spec in ARRAYS)


def test_an_examination_changes_nothing(finished):
    before = files(finished)
    change(finished if finished.is_file() else finished / "ledger.jsonl", 3)
    damaged = files(finished)

    examine_store(finished)

    assert files(finished) == damaged != before


def test_bytes_behind_the_end_are_found_and_taken_away(finished):
    before = files(finished)
    for file in [finished] if finished.is_file() else sorted(p for p in finished.rglob("*") if p.is_file()):
        with open(file, "ab") as opened:
            opened.write(b"\0")

        assert examine_store(finished).damages, f"{file} is longer than it was"
        assert mend_store(finished, Remade()) == []
        assert files(finished) == before


def test_every_file_that_is_gone_is_found_and_made_again(finished):
    if finished.is_file():
        pytest.skip("a file that is gone is no store")
    before = files(finished)
    for name in before:
        (finished / name).unlink()

        assert [damage.file for damage in examine_store(finished).damages] == [name]
        assert mend_store(finished, Remade()) == []
        assert files(finished) == before


def test_an_unfinished_store_is_examined_as_far_as_it_is_committed(finished):
    path = finished.with_name(f"unfinished{finished.suffix}")
    store = create_store(path, header(), table(), chunk_multiple=BATCH)
    fill(store, commit_every=2, stop_after=5)
    store.close()

    found = examine_store(path)

    assert found.damages == ()
    assert not found.finished
    assert found.state.missing(["embedding"], [0], ROWS) == [range(4 * BATCH, ROWS)]


def test_a_damaged_line_of_an_unfinished_ledger_is_told_and_mending_leaves_what_was_before_it(finished):
    path = finished.with_name(f"unfinished{finished.suffix}")
    store = create_store(path, header(), table(), chunk_multiple=BATCH)
    fill(store, commit_every=1, stop_after=5)
    store.close()
    folder = path if path.is_dir() else path.with_name(f"{path.name}.zarr")
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    change(folder / "ledger.jsonl", sum(map(len, lines[:3])) + 20)

    (damage,) = examine_store(path).damages
    assert damage.file == "ledger.jsonl"
    assert "line 4 cannot be trusted, so that it and what follows never happened" in damage.what

    assert mend_store(path, Remade()) == []
    assert open_store(path).missing() == [range(2 * BATCH, ROWS)]
    store = open_store(path, writable=True)
    fill(store)
    store.finish()
    store.close()
    assert examine_store(path).damages == ()


def test_a_reader_is_refused_by_a_damaged_ledger_and_never_sees_fewer_rows(finished):
    if finished.is_file():
        pytest.skip("its ledger is in the file")
    lines = (finished / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    change(finished / "ledger.jsonl", len(lines[0]) + 20)

    with pytest.raises(
        StoreDamagedError, match="ledger.jsonl is not the file .* Mend it with: featurecache verify .* --repair"
    ):
        open_store(finished)


def test_a_copy_in_the_other_format_has_a_second_ledger_too(finished):
    copy = finished.with_name(f"copy{next(s for s in SUFFIXES if s != finished.suffix)}")

    copy_store(open_store(finished), copy)

    assert examine_store(copy).damages == ()


def test_features_that_come_out_otherwise_are_told_by_how_much_and_left(finished):
    if finished.is_dir():
        change(finished / "embedding/c/0/0/0", 5)
    else:
        change(finished, finished.read_bytes().index(values(range(8))["embedding"].tobytes()) + 5)
    before = files(finished)

    (unlike, *_) = mend_store(finished, Remade(shift=0.5))

    assert unlike.file == "embedding/c/0/0/0"
    assert "is not what is recorded" in unlike.what
    assert files(finished) == before


def test_features_that_come_out_otherwise_are_taken_where_that_is_accepted_and_recorded(finished):
    if finished.is_dir():
        change(finished / "embedding/c/0/0/0", 5)
    else:
        change(finished, finished.read_bytes().index(values(range(8))["embedding"].tobytes()) + 5)

    assert mend_store(finished, Remade(shift=0.5), accept=True) == []

    assert examine_store(finished).damages == ()
    assert open_store(finished).finished
    expected = (values(range(8))["embedding"][:, 0] + 0.5).astype(np.float16)
    np.testing.assert_array_equal(open_store(finished).read("embedding", slice(0, 8)), expected)


def test_a_row_table_is_not_made_of_other_data(finished):
    if finished.is_dir():
        change(finished / "sample_id/c/0", 50)
    else:
        change(finished, finished.read_bytes().index("class é/7.jpg".encode()))
    before = files(finished)

    unlike = mend_store(finished, OtherData())

    assert {one.what for one in unlike} == {"the data set is no longer the one that this store was made of"}
    assert files(finished) == before


def test_classes_that_come_out_otherwise_are_left(finished):
    if finished.is_file():
        pytest.skip("one checksum covers classes and row table")
    change(finished / "text/eot/c/0/0/0/0", 5)
    before = files(finished)

    (unlike,) = mend_store(finished, Remade(shift=1))

    assert (unlike.file, unlike.what) == ("text/eot/c/0/0/0/0", "the text side no longer gives the same bits")
    assert files(finished) == before


def test_other_readers_do_not_see_the_block_in_front_of_hdf5(finished):
    copy = finished if finished.is_file() else finished.with_name("copy.h5")
    if copy != finished:
        copy_store(open_store(finished), copy)

    with h5py.File(copy) as file:
        assert file.userblock_size >= 512
        offset = file["embedding"].id.get_offset()
        np.testing.assert_array_equal(file["embedding"][:], values(range(ROWS))["embedding"])
    stored = copy.read_bytes()[offset : offset + ARRAYS[0].row_bytes]
    assert stored == values(range(1))["embedding"].tobytes()
