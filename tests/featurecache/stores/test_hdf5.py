"""HDF5 stores keep the contract, hold what the Zarr store holds, and any h5py reader opens them."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from featurecache.errors import StoreDamagedError, StoreError, StoreNotFoundError
from featurecache.stores import copy_store, create_store, open_store, same_store
from tests.featurecache.stores.contract import StoreContract
from tests.featurecache.stores.samples import ARRAYS, BATCH, ROWS, files, fill, header, said, table, values


class TestHdf5Store(StoreContract):
    suffix = ".h5"

    def journalled(self, path):
        return path.with_name(f"{path.name}.zarr")

    def change_header(self, path):
        with h5py.File(path, "r+") as file:
            shown = json.loads(file.attrs["featurecache"])
            file.attrs["featurecache"] = json.dumps({**shown, "backbone": {"name": "Test"}})

    def change_constant(self, path):
        with h5py.File(path, "r+") as file:
            file["text/eot"][2, 0, 0, 0] += 1

    def test_arrays_of_the_classes_survive_both_ways_byte_by_byte(self, spoken, tmp_path):
        copy_store(open_store(spoken), tmp_path / "back.zarr")
        copy_store(open_store(tmp_path / "back.zarr"), tmp_path / "again.h5")

        assert files(tmp_path / "again.h5") == files(spoken)
        np.testing.assert_array_equal(open_store(tmp_path / "back.zarr").constant("text/eot"), said()["text/eot"])
        with h5py.File(spoken) as file:
            np.testing.assert_array_equal(file["text/embedding"][:], said()["text/embedding"])

    def test_damaged_classes_leave_no_copy(self, spoken, tmp_path):
        self.change_constant(spoken)

        with pytest.raises(StoreDamagedError, match="text/eot of the classes"):
            copy_store(open_store(spoken), tmp_path / "x.zarr")
        assert [path.name for path in tmp_path.iterdir()] == ["features.h5"]

    def test_a_plain_h5py_reader_sees_features_and_row_table(self, finished):
        with h5py.File(finished) as file:
            for name, expected in values(range(ROWS)).items():
                np.testing.assert_array_equal(file[name][:], expected)
            assert file["sample_id"].asstr()[3] == "class é/3.jpg"
            assert file["status"].asstr()[40] == "skipped: truncated"
            assert file["embedding"].attrs["logical_dtype"] == "float16"
            assert json.loads(file.attrs["featurecache"])["class_names"] == ["a", "b"]

    def test_only_the_file_is_left_when_the_store_is_finished(self, finished):
        assert [path.name for path in finished.parent.iterdir()] == ["features.h5"]

    def test_the_zarr_side_is_a_store_of_its_own_until_then(self, path):
        store = create_store(path, header(), table(), chunk_multiple=BATCH)
        fill(store)

        side = open_store(self.journalled(path))

        assert not path.exists()
        assert side.missing() == []
        np.testing.assert_array_equal(side.read("embedding", slice(0, 5)), store.read("embedding", slice(0, 5)))

    def test_it_equals_the_zarr_store_array_by_array_and_both_ways_byte_by_byte(self, finished, tmp_path):
        original, back, again = tmp_path / "x.zarr", tmp_path / "back.zarr", tmp_path / "again.h5"
        store = create_store(original, header(), table(), chunk_multiple=BATCH)
        fill(store)
        store.finish()
        store.close()

        copy_store(open_store(finished), back)
        copy_store(open_store(original), again)

        assert files(back) == files(original)
        assert files(again) == files(finished)
        assert same_store(open_store(again), open_store(original))

    def test_a_changed_value_is_found_by_the_checksums_of_the_ledger(self, finished, tmp_path):
        with h5py.File(finished, "r+") as file:
            file["layers/cls/00"][777, 0, 5] += 1

        with pytest.raises(
            StoreDamagedError, match="rows 672 to 839 of layers/cls/00|of layers/cls/00 are not the values"
        ):
            copy_store(open_store(finished), tmp_path / "x.zarr")
        assert [path.name for path in tmp_path.iterdir()] == ["features.h5"]

    def test_a_damaged_row_table_is_found(self, finished, tmp_path):
        with h5py.File(finished, "r+") as file:
            file["sample_id"][5] = "another.jpg"

        with pytest.raises(StoreDamagedError, match="of the row table is not what was written"):
            copy_store(open_store(finished), tmp_path / "x.zarr")

    def test_a_file_that_is_cut_off_is_refused(self, finished):
        finished.write_bytes(finished.read_bytes()[:-4096])

        with pytest.raises(StoreDamagedError, match="cannot be opened as HDF5: it is cut off"):
            open_store(finished)

    def test_another_hdf5_file_is_not_a_store(self, path):
        with h5py.File(path, "w") as file:
            file["x"] = 1

        with pytest.raises(StoreNotFoundError, match="is there, but it is not a feature store"):
            open_store(path)

    def test_arrays_that_another_program_has_chunked_are_read_in_any_order(self, finished):
        rows = np.array([999, 3, 3, 500])
        with h5py.File(finished, "r+") as file:
            for spec in ARRAYS:
                stored, logical = file[spec.name][:], dict(file[spec.name].attrs)
                del file[spec.name]
                file.create_dataset(spec.name, data=stored, chunks=True, compression="gzip").attrs.update(logical)

        store = open_store(finished)

        for name, expected in values(range(ROWS)).items():
            assert store.mapped(name) is None
            np.testing.assert_array_equal(store.read(name, rows), expected[rows, 0])
            np.testing.assert_array_equal(store.read(name, slice(10, 20)), expected[10:20, 0])

    def test_a_reader_keeps_its_file_while_an_extension_replaces_it(self, finished):
        reader = open_store(finished)
        mapped = reader.mapped("embedding")

        finished.unlink()
        finished.write_bytes(b"another file")

        np.testing.assert_array_equal(
            reader.read("layers/cls/00", slice(0, 9)), values(range(9))["layers/cls/00"][:, 0]
        )
        np.testing.assert_array_equal(mapped[:9], values(range(9))["embedding"][:, 0])

    def test_a_second_writer_is_refused_on_a_finished_file_too(self, finished):
        first = open_store(finished, writable=True)

        with pytest.raises(StoreError, match="is being written by process"):
            open_store(finished, writable=True)
        assert not open_store(finished).finished
        first.close()
        assert open_store(finished).finished

    def test_notes_of_a_store_that_is_gone_are_not_taken_for_those_of_a_new_one(self, path):
        path.with_name("features.h5.notes").mkdir()

        with pytest.raises(StoreError, match="features.h5.notes exists already, with notes of a store that is gone"):
            create_store(path, header(), table(), chunk_multiple=BATCH)
