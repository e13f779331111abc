"""Folders keep the contract of data sets, wherever they lie and whatever else lies in them."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from featurecache.datasets import _decoding, open_dataset
from featurecache.errors import DatasetError, DatasetNotFoundError, UnreadableSampleError
from tests.featurecache.datasets.contract import DatasetContract
from tests.featurecache.datasets.pictures import as_folder, encoded, tree

CLASSES = {"cat": 20, "dog": 20, "a class with spaces": 10}


class TestImageFolder(DatasetContract):
    def spec(self, folder):
        return as_folder(tree(CLASSES), folder / "pets")


@pytest.fixture
def root(tmp_path):
    as_folder(tree(CLASSES), tmp_path / "pets")
    return tmp_path / "pets"


def test_a_folder_copied_elsewhere_under_its_name_is_the_same_data_set(root, tmp_path):
    copied = shutil.copytree(root, tmp_path / "elsewhere" / "pets")

    assert open_dataset(copied).identity == open_dataset(root).identity


def test_a_folder_of_another_name_keeps_the_fingerprint(root):
    before = open_dataset(root).identity
    renamed = open_dataset(root.rename(root.with_name("animals"))).identity

    assert renamed == {**before, "name": "animals"}


def test_the_order_in_which_files_were_written_does_not_matter(root, tmp_path):
    backwards = dict(reversed(tree(CLASSES).items()))
    other = as_folder(backwards, tmp_path / "other" / "pets")

    assert open_dataset(other).identity == open_dataset(root).identity


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "cat/000.jpg").rename(root / "dog/cat.jpg"),
        lambda root: (root / "cat/000.jpg").rename(root / "cat/new.jpg"),
        lambda root: (root / "cat").rename(root / "lion"),
        lambda root: (root / "cat/000.jpg").write_bytes(encoded(5) + b"more"),
        lambda root: (root / "cat/000.jpg").unlink(),
        lambda root: shutil.copy(root / "cat/000.jpg", root / "cat/copy.jpg"),
    ],
    ids=["label", "name", "class name", "size", "removed", "added"],
)
def test_the_fingerprint_changes_with_every_label_name_size_and_file(root, change):
    before = open_dataset(root).identity["fingerprint"]

    change(root)

    assert open_dataset(root).identity["fingerprint"] != before


def test_hidden_files_and_what_is_no_image_are_not_rows(root):
    before = list(open_dataset(root).table.sample_id)
    for name in (
        ".hidden.jpg",
        "cat/.hidden.jpg",
        "__MACOSX/cat/000.jpg",
        ".cache/x/1.jpg",
        "README.txt",
        "cat/.DS_Store",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"some text" if name.endswith(".txt") else encoded())

    assert list(open_dataset(root).table.sample_id) == before


def test_folders_inside_a_class_folder_belong_to_the_class(tmp_path):
    files = {"cat/2019/a.jpg": encoded(), "cat/2020/a.jpg": encoded(), "cat/b.jpg": encoded(), "dog/c.jpg": encoded()}

    dataset = open_dataset(as_folder(files, tmp_path / "pets"))

    assert dataset.class_names == ("cat", "dog")
    assert dataset.table.target.tolist() == [0, 0, 0, 1]


def test_names_with_spaces_quotes_and_other_scripts_are_read(tmp_path):
    names = ["ein Hund/größe.jpg", 'it\'s "odd"/x\ny.jpg', "猫/三毛 猫.jpg"]

    dataset = open_dataset(as_folder({name: encoded(i) for i, name in enumerate(names)}, tmp_path / "pets"))

    assert sorted(dataset.table.sample_id) == sorted(names)
    assert {dataset.read(row).size for row in range(3)} == {(12, 9)}


def test_a_name_that_is_not_text_is_refused(root):
    with open(os.fsencode(root) + b"/cat/\xff.jpg", "wb") as file:
        file.write(encoded())

    with pytest.raises(DatasetError, match="1 names that are not UTF-8, such as 'cat/.*rename them"):
        open_dataset(root)


def test_suffixes_are_known_in_capitals_too(tmp_path):
    files = {"cat/A.JPG": encoded(), "cat/B.Jpeg": encoded(), "cat/C.PNG": encoded(kind="PNG")}

    assert len(open_dataset(as_folder(files, tmp_path / "pets"))) == 3


def test_links_to_files_and_folders_are_followed(root, tmp_path):
    as_folder({"1.jpg": encoded(1)}, tmp_path / "outside")
    (root / "linked class").symlink_to(tmp_path / "outside")
    (root / "cat/linked.jpg").symlink_to(tmp_path / "outside/1.jpg")

    dataset = open_dataset(root)

    rows = [list(dataset.table.sample_id).index(name) for name in ("linked class/1.jpg", "cat/linked.jpg")]
    np.testing.assert_array_equal(*[np.asarray(dataset.read(row)) for row in rows])


def test_a_link_to_nothing_is_a_row_that_cannot_be_read(root):
    (root / "cat/gone.jpg").symlink_to(root / "nowhere.jpg")

    dataset = open_dataset(root)

    row = list(dataset.table.sample_id).index("cat/gone.jpg")
    with pytest.raises(UnreadableSampleError, match="cannot read 'cat/gone.jpg': No such file or directory"):
        dataset.read(row)


def test_a_link_to_a_folder_above_is_refused(root):
    (root / "cat/again").symlink_to(root)

    with pytest.raises(DatasetError, match="cat/again is a link to a folder that holds it. Remove the link"):
        open_dataset(root)


def test_a_pipe_with_the_name_of_an_image_is_no_row(root):
    os.mkfifo(root / "cat/pipe.jpg")

    assert "cat/pipe.jpg" not in open_dataset(root).table.sample_id


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_refused(root):
    (root / "dog").chmod(0)
    try:
        with pytest.raises(DatasetError, match="cannot list .*dog: Permission denied"):
            open_dataset(root)
    finally:
        (root / "dog").chmod(0o755)


def test_a_file_that_vanished_after_opening_is_named(root):
    dataset = open_dataset(root)
    (root / "cat/000.jpg").unlink()

    row = list(dataset.table.sample_id).index("cat/000.jpg")
    with pytest.raises(UnreadableSampleError, match="'cat/000.jpg': No such file"):
        dataset.read(row)


def test_a_file_too_large_to_be_a_picture_is_not_read(root, monkeypatch):
    monkeypatch.setattr(_decoding, "LARGEST_FILE", 100)

    with pytest.raises(UnreadableSampleError, match="no picture that can be decoded safely has more than 100"):
        open_dataset(root).read(0)


def test_a_folder_without_images_is_refused_with_the_suffixes(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no image. Known suffixes: .*\.bmp, .*\.gif, .*\.jpeg"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("spec", ["nowhere", "no/where", "image_folder:nowhere", "image-folder:no/where"])
def test_a_missing_folder_is_answered_with_what_can_be_named(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DatasetNotFoundError, match="where is not a folder. Name a folder of class folders"):
        open_dataset(spec)
