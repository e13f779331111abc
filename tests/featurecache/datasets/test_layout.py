"""What folders may look like: one layout at a time, and reported where classes cannot be learned or tested."""

from __future__ import annotations

import pytest

from featurecache.datasets import open_dataset
from featurecache.errors import DatasetError
from tests.featurecache.datasets.pictures import as_folder, encoded, tree


def test_images_in_class_folders_and_in_none_are_refused(tmp_path):
    files = {**tree({"cat": 3, "dog": 3}), "loose.jpg": encoded()}

    with pytest.raises(
        DatasetError, match="mixes images in class folders with 1 images that lie in none, such as 'loose"
    ):
        open_dataset(as_folder(files, tmp_path))


@pytest.mark.parametrize("beside", ["examples/1.jpg", "1.jpg"])
def test_images_beside_split_folders_are_refused(beside, tmp_path):
    files = {**tree({"train/cat": 2, "test/cat": 2}), beside: encoded()}

    with pytest.raises(DatasetError, match=f"mixes the split folders test, train with '{beside}' beside them"):
        open_dataset(as_folder(files, tmp_path))


def test_labelled_train_beside_unlabelled_test_is_refused(tmp_path):
    files = {**tree({"train/cat": 2}), "test/1.jpg": encoded()}

    way = f"The pictures of test have no labels: move them out of {tmp_path} and give them to predict, or name {tmp_path}/train alone"
    with pytest.raises(DatasetError, match=f"1 images that lie in none, such as 'test/1.jpg'.*{way}"):
        open_dataset(as_folder(files, tmp_path))


def test_a_class_may_be_called_train(tmp_path):
    dataset = open_dataset(as_folder(tree({"bus": 9, "car": 9, "train": 9}), tmp_path))

    assert dataset.class_names == ("bus", "car", "train")
    assert dataset.table.sample_id[-1] == "train/008.jpg"


def test_classes_that_are_in_one_split_only_are_reported_in_one_line(tmp_path, caplog):
    folders = {"train/cat": 2, "test/cat": 2, "val/cat": 1} | {f"train/rare{i}": 1 for i in range(7)}

    open_dataset(as_folder(tree(folders), tmp_path))

    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "in train only: 7 of 8 classes ('rare0', 'rare1', 'rare2', 'rare3', 'rare4', ...)"
    ]


def test_a_class_of_the_test_folder_alone_is_reported(tmp_path, caplog):
    open_dataset(as_folder(tree({"train/cat": 9, "test/cat": 9, "test/dog": 9}), tmp_path))

    assert "in test only: 1 of 2 classes ('dog')" in caplog.text
