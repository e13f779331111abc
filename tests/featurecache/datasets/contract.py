"""What every data set promises. A member's test says how to make a few specs, and inherits."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL.Image import Image
from PIL.Image import open as open_picture

from featurecache.datasets import SPLITS, ImageDataset, open_dataset


def pixels_of(pickled_read: bytes, row: int) -> np.ndarray:
    return np.asarray(pickle.loads(pickled_read)(row))


class DatasetContract:
    def spec(self, folder: Path) -> str:
        """Return the spec of a labelled data set of at least 40 rows, made in `folder` where it must be made."""
        raise NotImplementedError

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> ImageDataset:
        return open_dataset(self.spec(tmp_path))

    def test_sample_ids_are_unique_relative_and_sorted_rows(self, dataset):
        ids = list(dataset.table.sample_id)

        assert len(ids) == len(set(ids)) == len(dataset) >= 40
        assert ids == sorted(ids)
        assert not [name for name in ids if name.startswith("/") or ".." in name.split("/")]

    def test_every_column_has_a_value_for_every_row(self, dataset):
        columns = {f.name: getattr(dataset.table, f.name) for f in dataclasses.fields(dataset.table)}

        assert {name: len(values) for name, values in columns.items()} == dict.fromkeys(columns, len(dataset))

    def test_targets_are_int64_numbers_of_the_class_names(self, dataset):
        target = dataset.table.target

        assert target.dtype == np.int64
        assert set(target.tolist()) == set(range(len(dataset.class_names)))

    def test_every_labelled_row_is_in_a_split(self, dataset):
        assert set(dataset.table.split) == set(SPLITS)

    def test_every_class_can_be_learned(self, dataset):
        train = np.asarray(dataset.table.split) == "train"

        assert set(dataset.table.target[train].tolist()) == set(range(len(dataset.class_names)))

    def test_opening_twice_gives_the_same_data_set(self, dataset, tmp_path):
        again = open_dataset(dataset.spec)

        assert again.identity == dataset.identity
        assert list(again.table.sample_id) == list(dataset.table.sample_id)
        assert list(again.table.split) == list(dataset.table.split)
        np.testing.assert_array_equal(again.table.target, dataset.table.target)

    def test_the_identity_survives_a_trip_through_json(self, dataset):
        assert json.loads(json.dumps(dataset.identity)) == dataset.identity

    def test_the_identity_names_fingerprint_rows_and_split_rule(self, dataset):
        assert {"name", "fingerprint", "rows", "split_rule"} <= dataset.identity.keys()
        assert dataset.identity["rows"] == len(dataset)

    def test_another_split_seed_is_another_split_of_the_same_data(self, dataset):
        other = open_dataset(dataset.spec, split_seed=1)

        assert list(other.table.split) != list(dataset.table.split)
        assert other.identity != dataset.identity
        assert other.identity["fingerprint"] == dataset.identity["fingerprint"]

    def test_pictures_are_decoded_rgb(self, dataset):
        picture = dataset.read(0)

        assert isinstance(picture, Image)
        assert picture.mode == "RGB"

    def test_eight_threads_read_what_one_reads(self, dataset):
        rows = list(range(40)) * 4
        alone = [np.asarray(dataset.read(row)) for row in range(40)]

        with ThreadPoolExecutor(8) as pool:
            together = [np.asarray(picture) for picture in pool.map(dataset.read, rows)]

        assert all(np.array_equal(alone[row], found) for row, found in zip(rows, together, strict=True))

    def test_the_content_of_a_file_is_what_its_picture_is_decoded_from(self, dataset):
        content = pickle.loads(pickle.dumps(dataset.content))(7)

        if content is not None:  # digits, for one, are in no file
            np.testing.assert_array_equal(open_picture(io.BytesIO(content)).convert("RGB"), dataset.read(7))

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_another_process_reads_the_same(self, dataset, method):
        expected = np.asarray(dataset.read(7))

        with multiprocessing.get_context(method).Pool(1) as pool:
            found = pool.apply(pixels_of, (pickle.dumps(dataset.read), 7))

        np.testing.assert_array_equal(found, expected)
