"""The verb `convert`: the same store in the other format, both ways, checked, once."""

from __future__ import annotations

import os
import resource
import shutil

import h5py
import numpy as np
import pytest
import torch

from featurecache.errors import ConfigError, StoreContentsError, StoreDamagedError, StoreError
from featurecache.provenance import note, provenance
from featurecache.scoring import saved_scores
from featurecache.stores import open_store
from pipelines.maintain import ConvertConfig, convert
from pipelines.rank import RankConfig
from pipelines.rank import run as rank
from tests.featurecache.stores.samples import files
from tests.pipelines.stores import made_store


def converted(source, out):
    return convert(ConvertConfig(store=source, out=out))


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_there_and_back_is_the_original_byte_for_byte(task, tmp_path):
    original = made_store(tmp_path / "x.zarr", task, skipped=(5,))
    saved_scores(open_store(original))
    note(original, {"origin": {"name": "made"}})

    converted(original, tmp_path / "x.h5")
    converted(tmp_path / "x.h5", tmp_path / "back.zarr")

    assert files(tmp_path / "back.zarr") == files(original)


def test_arrays_row_table_scores_and_provenance_are_those_of_the_source(tmp_path):
    original = made_store(tmp_path / "x.zarr", skipped=(5,))
    scores = saved_scores(open_store(original))
    note(original, {"origin": {"name": "made"}})

    report = converted(original, tmp_path / "x.hdf5")

    source, copy = open_store(original), open_store(tmp_path / "x.hdf5")
    assert copy.finished
    assert copy.header == source.header
    assert list(copy.status()) == list(source.status())
    assert [list(copy.table().split), list(copy.table().group)] == [
        list(source.table().split),
        list(source.table().group),
    ]
    for spec in source.header.arrays:
        np.testing.assert_array_equal(copy.mapped(spec.name), source.mapped(spec.name))
    assert provenance(copy.notes) == provenance(source.notes) != []
    assert saved_scores(copy) == scores
    assert report.json()["rows"] == 120


def test_the_second_time_nothing_is_written(tmp_path):
    original = made_store(tmp_path / "x.zarr")
    converted(original, tmp_path / "x.h5")
    before = (tmp_path / "x.h5").stat()

    report = converted(original, tmp_path / "x.h5")

    assert report.was_there
    assert os.path.samestat((tmp_path / "x.h5").stat(), before)
    assert "holds all of" in report.tables()[0].notes[0]


def test_another_store_is_not_overwritten(tmp_path):
    converted(made_store(tmp_path / "x.zarr"), tmp_path / "x.h5")
    other = made_store(tmp_path / "y.zarr", rows=60)

    with pytest.raises(StoreError, match=r"x\.h5 is there, and is not a copy of .*y\.zarr"):
        converted(other, tmp_path / "x.h5")


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_an_unfinished_source_is_refused(suffix, tmp_path):
    source = made_store(tmp_path / f"x{suffix}", stop_at=48)

    with pytest.raises(StoreContentsError, match=r"is not finished \(72 of 120 rows are not committed\)"):
        converted(source, tmp_path / ("y.h5" if suffix == ".zarr" else "y.zarr"))


def test_a_damaged_source_leaves_no_copy(tmp_path):
    source = made_store(tmp_path / "x.zarr")
    chunk = next(path for path in (source / "embedding").rglob("*") if path.is_file() and path.name != "zarr.json")
    content = bytearray(chunk.read_bytes())
    content[7] ^= 1
    chunk.write_bytes(content)

    with pytest.raises(StoreDamagedError, match="of embedding are not the values that were committed"):
        converted(source, tmp_path / "x.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zarr"]


def test_a_copy_that_does_not_hold_what_was_written_gets_no_name(tmp_path, monkeypatch):
    source, create = made_store(tmp_path / "x.zarr"), h5py.Dataset.__setitem__
    monkeypatch.setattr(h5py.Dataset, "__setitem__", lambda array, rows, values: create(array, rows, values * 2))

    with pytest.raises(StoreDamagedError, match="are not the values that were committed"):
        converted(source, tmp_path / "x.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zarr"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    source = made_store(tmp_path / "x.zarr")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    whole = converted(source, tmp_path / "x.h5").out.stat().st_size
    (tmp_path / "x.h5").unlink()
    shutil.rmtree(tmp_path / "x.h5.notes", ignore_errors=True)

    for largest in (100, whole // 3, whole - 1):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
            with pytest.raises(StoreError, match=r"cannot write .*x\.h5: File too large"):
                converted(source, tmp_path / "x.h5")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [path.name for path in tmp_path.iterdir()] == ["x.zarr"]


def test_the_store_itself_is_no_target(tmp_path):
    with pytest.raises(ConfigError, match="out must be another path than the store"):
        converted(tmp_path / "x.zarr", tmp_path / "x.zarr")


def test_what_is_known_of_a_file_stands_in_the_folder_beside_it(tmp_path):
    store = made_store(tmp_path / "x.h5")

    rank(RankConfig(stores=(store,), metric=("logme", "h_score")))

    assert {path.name for path in tmp_path.rglob("*.json")} == {"logme.json", "h_score.json"}
    assert {path.parent for path in tmp_path.rglob("*.json")} == {tmp_path / "x.h5.notes" / "scores"}


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_is_kept_in_fewer_bits_with_the_values_of_a_cast(dtype, suffix, tmp_path):
    source = made_store(tmp_path / "x.zarr", skipped=(5,))

    report = convert(ConvertConfig(store=source, out=tmp_path / f"y{suffix}", dtype=dtype))

    wide, narrow = open_store(source), open_store(tmp_path / f"y{suffix}")
    assert narrow.finished
    assert list(narrow.status()) == list(wide.status())
    assert {spec.dtype for spec in narrow.header.arrays} == {dtype}
    for spec in wide.header.arrays:
        expected = torch.from_numpy(wide.to_numpy(spec.name).copy()).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(narrow.to_numpy(spec.name).astype(np.float32), expected)
    assert not report.was_there
    assert convert(ConvertConfig(store=source, out=tmp_path / f"y{suffix}", dtype=dtype)).was_there
    told = [line["converted"] for line in provenance(narrow.notes) if "converted" in line]
    assert told == [{"from": str(source), "dtype": dtype}]


def test_only_float32_is_narrowed_and_another_store_is_not_taken_for_it(tmp_path):
    source = made_store(tmp_path / "x.zarr")
    convert(ConvertConfig(store=source, out=tmp_path / "y.zarr", dtype="float16"))

    with pytest.raises(StoreContentsError, match="holds float16, and only float32 is converted"):
        convert(ConvertConfig(store=tmp_path / "y.zarr", out=tmp_path / "z.zarr", dtype="bfloat16"))
    with pytest.raises(StoreError, match=r"y.zarr is there, and is not .*x.zarr as bfloat16"):
        convert(ConvertConfig(store=source, out=tmp_path / "y.zarr", dtype="bfloat16"))
