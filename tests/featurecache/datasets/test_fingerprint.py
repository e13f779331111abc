"""What recognises a data set: sizes by default, every byte on request, or names alone without a look at any file."""

from __future__ import annotations

import os

import pytest

from featurecache.datasets import open_dataset
from featurecache.errors import DatasetError
from tests.featurecache.datasets.pictures import as_folder, as_tar, as_zip, tree

FILES = tree({"cat": 6, "dog": 6})


@pytest.fixture
def root(tmp_path):
    as_folder(FILES, tmp_path / "pets")
    return tmp_path / "pets"


def spoiled(content: bytes) -> bytes:
    """Return other bytes of the same length."""
    return content[:-3] + bytes(byte ^ 1 for byte in content[-3:])


@pytest.mark.parametrize(("kind", "differs"), [("sizes", False), ("content", True), ("names", False)])
def test_bytes_of_one_length_are_told_apart_by_content_alone(kind, differs, root):
    before = open_dataset(root, fingerprint=kind).identity
    (root / "cat/000.jpg").write_bytes(spoiled(FILES["cat/000.jpg"]))

    after = open_dataset(root, fingerprint=kind).identity

    assert (after != before) is differs
    assert {**after, "fingerprint": ""} == {**before, "fingerprint": ""}


@pytest.mark.parametrize(("kind", "differs"), [("sizes", True), ("content", True), ("names", False)])
def test_a_longer_file_is_told_apart_by_all_but_names(kind, differs, root):
    before = open_dataset(root, fingerprint=kind).identity
    with (root / "cat/000.jpg").open("ab") as file:
        file.write(b"more")

    assert (open_dataset(root, fingerprint=kind).identity != before) is differs


@pytest.mark.parametrize("kind", ["content", "names"])
def test_an_identity_names_its_kind_of_fingerprint_if_it_is_not_the_usual(kind, root):
    assert ":" not in open_dataset(root).identity["fingerprint"]
    assert open_dataset(root, fingerprint=kind).identity["fingerprint"].startswith(f"{kind}:")


@pytest.mark.parametrize("kind", ["content", "names"])
def test_a_folder_and_its_archives_have_one_fingerprint_of_each_kind(kind, root, tmp_path):
    packed = as_zip(FILES, tmp_path / "pets.zip"), as_tar(FILES, tmp_path / "pets.tar")

    identities = [open_dataset(place, fingerprint=kind).identity for place in (root, *packed)]

    assert identities == identities[:1] * 3


def test_names_ask_for_no_size_of_any_file(root, monkeypatch):
    looked_at = []
    monkeypatch.setattr("featurecache.datasets.image_folder._size", lambda entry: looked_at.append(entry.path))
    monkeypatch.setattr(os, "stat", lambda path, *rest, whole=os.stat, **more: (
        looked_at.append(path) if str(path).endswith(".jpg") else None, whole(path, *rest, **more))[1])  # fmt: skip

    assert len(open_dataset(root, fingerprint="names")) == 12
    assert looked_at == []


def test_content_of_what_cannot_be_read_is_the_reason(root):
    (root / "cat/gone.jpg").symlink_to(root / "nowhere.jpg")
    before = open_dataset(root, fingerprint="content").identity
    (root / "nowhere.jpg").write_bytes(FILES["cat/000.jpg"])
    (root / "nowhere.jpg").rename(root.parent / "here.jpg")
    (root / "cat/gone.jpg").unlink()
    (root / "cat/gone.jpg").symlink_to(root.parent / "here.jpg")

    assert before["rows"] == 13
    assert open_dataset(root, fingerprint="content").identity != before


def test_content_of_the_digits_is_their_pixels():
    by_content = open_dataset("digits", fingerprint="content").identity["fingerprint"]

    assert by_content.startswith("content:")
    assert by_content.removeprefix("content:") != open_dataset("digits").identity["fingerprint"]


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_what_gives_each_image_one_class_refuses_other_tasks(task, root):
    for spec in (str(root), "digits"):
        with pytest.raises(DatasetError, match=f"one class, and task {task} was asked for.*come from a manifest"):
            open_dataset(spec, task=task)

    assert open_dataset(root, task="classification").identity == open_dataset(root).identity
