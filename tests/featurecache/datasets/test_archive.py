"""Archives keep the contract of data sets and are the folders they were packed from; hostile ones are refused."""

from __future__ import annotations

import io
import tarfile
import zipfile

import numpy as np
import pytest

from featurecache.datasets import _decoding, open_dataset
from featurecache.errors import DatasetError, DatasetNotFoundError, UnreadableSampleError
from tests.featurecache.datasets.contract import DatasetContract
from tests.featurecache.datasets.pictures import as_folder, as_tar, as_zip, encoded, tree
from tests.shared_data import CIFAR, needs_shared

CLASSES = {"cat": 20, "dog": 20, "grüne Vögel": 10}
PACKERS = {".zip": as_zip, ".tar": as_tar}
both = pytest.mark.parametrize("suffix", list(PACKERS))


class TestZip(DatasetContract):
    def spec(self, folder):
        return as_zip(tree(CLASSES), folder / "pets.zip")


class TestStoredZip(DatasetContract):
    def spec(self, folder):
        return as_zip(tree(CLASSES), folder / "pets.zip", zipfile.ZIP_STORED)


class TestTar(DatasetContract):
    def spec(self, folder):
        return as_tar(tree(CLASSES), folder / "pets.tar")


def pack(files, folder, suffix, name="pets"):
    return PACKERS[suffix](files, folder / f"{name}{suffix}")


@both
@pytest.mark.parametrize("prefix", ["", "./", "pets/", "./pets/"])
def test_an_archive_is_the_folder_it_was_packed_from(suffix, prefix, tmp_path):
    folder = open_dataset(as_folder(tree(CLASSES), tmp_path / "pets"))
    archive = open_dataset(pack({prefix + name: content for name, content in tree(CLASSES).items()}, tmp_path, suffix))

    assert archive.identity == folder.identity
    assert list(archive.table.sample_id) == list(folder.table.sample_id)
    np.testing.assert_array_equal(np.asarray(archive.read(33)), np.asarray(folder.read(33)))


@both
def test_members_in_any_order_give_the_same_rows(suffix, tmp_path):
    (tmp_path / "other").mkdir()
    backwards = dict(reversed(tree(CLASSES).items()))

    ours, theirs = (
        open_dataset(pack(f, p, suffix)) for f, p in ((tree(CLASSES), tmp_path), (backwards, tmp_path / "other"))
    )

    assert ours.identity == theirs.identity
    np.testing.assert_array_equal(np.asarray(ours.read(3)), np.asarray(theirs.read(3)))


@both
def test_a_single_split_folder_is_not_taken_for_a_wrapping(suffix, tmp_path):
    dataset = open_dataset(pack(tree({"test/cat": 3, "test/dog": 3}), tmp_path, suffix))

    assert dataset.class_names == ("cat", "dog")
    assert set(dataset.table.split) == {"test"}


@both
def test_dots_in_the_name_belong_to_the_name(suffix, tmp_path):
    dataset = open_dataset(pack(tree({"cat": 3}), tmp_path, suffix, name="pets.v2"))

    assert dataset.name == "pets.v2"


@both
def test_the_leavings_of_a_mac_are_not_rows(suffix, tmp_path):
    files = {**tree({"cat": 3}), "__MACOSX/cat/._000.jpg": b"x", "cat/.DS_Store": b"x", "__MACOSX/cat/000.jpg": b"x"}

    assert len(open_dataset(pack(files, tmp_path, suffix))) == 3


@both
@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "cat/../../x.jpg", "../notes.txt"])
def test_members_that_climb_out_are_refused(suffix, name, tmp_path):
    with pytest.raises(DatasetError, match="holds members that climb out of it: '.*'. Pack it again"):
        open_dataset(pack({**tree({"cat": 3}), name: encoded()}, tmp_path, suffix))


@both
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(suffix, tmp_path):
    path = pack(tree({"cat": 3}), tmp_path, suffix)
    if suffix == ".zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("cat/000.jpg", encoded(9))
    else:
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo("./cat/000.jpg")
            info.size = len(encoded(9))
            archive.addfile(info, io.BytesIO(encoded(9)))

    with pytest.raises(DatasetError, match="holds several members of one name: 'cat/000.jpg'"):
        open_dataset(path)


@both
def test_an_archive_that_is_cut_off_is_refused(suffix, tmp_path):
    path = pack(tree({"cat": 30}), tmp_path, suffix)
    content = (tmp_path / f"pets{suffix}").read_bytes()
    (tmp_path / f"pets{suffix}").write_bytes(content[: len(content) // 2 + 7])

    with pytest.raises(DatasetError, match="(cut off|is damaged).*again"):
        open_dataset(path)


@both
def test_bytes_that_are_no_archive_are_refused(suffix, tmp_path):
    (tmp_path / f"pets{suffix}").write_bytes(b"not an archive at all " * 100)

    with pytest.raises(DatasetError, match=f"pets{suffix} is not a .zip or .tar, or it is cut off"):
        open_dataset(tmp_path / f"pets{suffix}")


@both
def test_an_archive_without_images_is_refused(suffix, tmp_path):
    with pytest.raises(DatasetError, match="holds no image"):
        open_dataset(pack({"README.md": b"hello"}, tmp_path, suffix))


@both
def test_a_missing_archive_is_answered_with_what_can_be_named(suffix, tmp_path):
    with pytest.raises(DatasetNotFoundError, match="is not a file. Name a .zip or .tar of class folders"):
        open_dataset(tmp_path / f"nowhere{suffix}")


@both
def test_damaged_bytes_of_one_member_make_one_row_unreadable(suffix, tmp_path):
    files = tree({"cat": 3}, suffix=".png")
    path = tmp_path / f"pets{suffix}"
    pack(files, tmp_path, suffix)
    content = bytearray(path.read_bytes())
    place = content.index(files["cat/001.png"][60:80]) if suffix == ".tar" else _zip_place(path, "cat/001.png") + 60
    content[place : place + 8] = b"\xff" * 8
    path.write_bytes(content)

    dataset = open_dataset(path)

    assert dataset.read(0).size == dataset.read(2).size == (12, 9)
    with pytest.raises(UnreadableSampleError, match="cannot read 'cat/001.png': "):
        dataset.read(1)


def _zip_place(path, name):
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(name).header_offset + 30 + len(name)


@both
def test_a_member_too_large_to_be_a_picture_is_not_unpacked(suffix, tmp_path, monkeypatch):
    dataset = open_dataset(pack({"cat/bomb.png": bytes(5000), "cat/fine.jpg": encoded()}, tmp_path, suffix))
    monkeypatch.setattr(_decoding, "LARGEST_FILE", 4000)

    assert dataset.read(1).mode == "RGB"
    with pytest.raises(UnreadableSampleError, match="'cat/bomb.png': it has 5000 bytes"):
        dataset.read(0)


def test_a_zip_that_lies_about_a_size_unpacks_no_more_than_it_says(tmp_path):
    path = tmp_path / "pets.zip"
    as_zip({"cat/000.jpg": bytes(5_000_000)}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace((5_000_000).to_bytes(4, "little"), (500).to_bytes(4, "little")))

    with pytest.raises(UnreadableSampleError, match="its place in the archive is damaged"):
        open_dataset(path).read(0)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = tmp_path / "pets.zip"
    as_zip({"cat/000.jpg": encoded()}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)

    with pytest.raises(DatasetError, match="is encrypted. Unpack it, and name the folder"):
        open_dataset(path)


def test_a_zip_of_a_rare_compression_is_refused(tmp_path):
    path = as_zip(tree({"cat": 3}), tmp_path / "pets.zip", zipfile.ZIP_LZMA)

    with pytest.raises(DatasetError, match="compressed by method 14. Pack it as a plain .zip"):
        open_dataset(path)


def test_a_damaged_header_in_a_tar_does_not_pass_for_its_end(tmp_path):
    path = tmp_path / "pets.tar"
    as_tar(tree({"cat": 3}), path)
    content = bytearray(path.read_bytes())
    content[content.index(b"cat/001.jpg") + 120] ^= 1
    path.write_bytes(content)

    with pytest.raises(DatasetError, match="is damaged: no header at byte [0-9]+"):
        open_dataset(path)


def test_links_in_a_tar_are_what_they_point_to(tmp_path):
    path = tmp_path / "pets.tar"
    as_tar(tree({"cat": 3}), path)
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("dog/hard.jpg", tarfile.LNKTYPE, "cat/001.jpg"),
            ("dog/soft.jpg", tarfile.SYMTYPE, "../cat/001.jpg"),
            ("dog/gone.jpg", tarfile.SYMTYPE, "../../outside.jpg"),
            ("dog/loop.jpg", tarfile.SYMTYPE, "loop.jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)

    dataset = open_dataset(path)

    row = {name: number for number, name in enumerate(dataset.table.sample_id)}
    for name in ("dog/hard.jpg", "dog/soft.jpg"):
        np.testing.assert_array_equal(np.asarray(dataset.read(row[name])), np.asarray(dataset.read(1)))
    for name in ("dog/gone.jpg", "dog/loop.jpg"):
        with pytest.raises(UnreadableSampleError, match=f"'{name}': it is a link to nothing in the archive"):
            dataset.read(row[name])


def test_links_in_a_zip_are_what_they_point_to(tmp_path):
    path = tmp_path / "pets.zip"
    as_zip(tree({"cat": 3}), path)
    with zipfile.ZipFile(path, "a") as archive:
        for name, target in (
            ("dog/soft.jpg", "../cat/001.jpg"), ("dog/twice.jpg", "soft.jpg"), ("dog/gone.jpg", "../../outside.jpg"),
            ("dog/loop.jpg", "loop.jpg"),
        ):  # fmt: skip
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, target)

    dataset = open_dataset(path)

    row = {name: number for number, name in enumerate(dataset.table.sample_id)}
    for name in ("dog/soft.jpg", "dog/twice.jpg"):
        np.testing.assert_array_equal(np.asarray(dataset.read(row[name])), np.asarray(dataset.read(1)))
    for name in ("dog/gone.jpg", "dog/loop.jpg"):
        with pytest.raises(UnreadableSampleError, match=f"'{name}': it is a link to nothing in the archive"):
            dataset.read(row[name])


def written_by(system, files, path):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, system
            archive.writestr(info, content)
    return path


def test_backslashes_between_folders_of_a_zip_from_windows_are_slashes(tmp_path):
    files = {name.replace("/", "\\"): content for name, content in tree({"train/cat": 3, "test/cat": 3}).items()}
    path = written_by(0, {"train\\": b"", **files}, tmp_path / "pets.zip")

    dataset = open_dataset(path)

    assert dataset.class_names == ("cat",)
    assert dataset.table.sample_id[0] == "test/cat/000.jpg"
    assert dataset.read(0).size == (12, 9)


def test_a_backslash_in_a_name_on_another_system_is_part_of_it(tmp_path):
    path = written_by(3, {"cat/a\\b.jpg": encoded(), "dog/c.jpg": encoded(1)}, tmp_path / "pets.zip")

    assert open_dataset(path).table.sample_id[0] == "cat/a\\b.jpg"


@pytest.mark.parametrize("name", ["..\\x.jpg", "C:\\pets\\x.jpg", "\\x.jpg", "C:/pets/x.jpg"])
def test_members_that_climb_out_on_windows_are_refused(name, tmp_path):
    with pytest.raises(DatasetError, match="holds members that climb out of it"):
        open_dataset(written_by(0, {name: encoded(), "cat\\1.jpg": encoded()}, tmp_path / "pets.zip"))


def test_names_in_utf8_are_read_also_where_no_flag_says_so(tmp_path):
    path = tmp_path / "pets.zip"
    as_zip({"gr\u00fcn/1.jpg": encoded(), "\u732b/2.jpg": encoded(1)}, path)
    content = bytearray(path.read_bytes())
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(start)
        while at >= 0:
            content[at + flags + 1] &= ~0x08
            at = content.find(start, at + 4)
    path.write_bytes(content)

    dataset = open_dataset(path)

    assert dataset.class_names == ("gr\u00fcn", "\u732b")
    assert [dataset.read(row).size for row in range(2)] == [(12, 9)] * 2


def test_names_in_the_code_page_of_dos_are_read_as_the_standard_says(tmp_path):
    path = tmp_path / "pets.zip"
    as_zip({"cat/1.jpg": encoded(), "gr\u00fcn/1.jpg": encoded()}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace("gr\u00fcn".encode(), b"gr\x81nn").replace(b"\0\x08", b"\0\0"))

    assert open_dataset(path).class_names == ("cat", "gr\u00fcnn")


def test_a_zip_with_fields_for_large_files_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for name, content in tree({"cat": 3, "dog": 3}).items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)

    dataset = open_dataset(tmp_path / "pets.zip")

    assert [dataset.read(row).size for row in range(6)] == [(12, 9)] * 6


@both
@pytest.mark.parametrize("prefix", ["a/b/", "./a/./b/"[:4]])
def test_folders_around_everything_are_no_part_of_the_sample_ids(suffix, prefix, tmp_path):
    files = {prefix + name: content for name, content in tree(CLASSES).items()}

    assert (
        open_dataset(pack(files, tmp_path, suffix)).identity
        == open_dataset(as_folder(files, tmp_path / "pets")).identity
    )


def test_a_folder_that_is_called_like_an_archive_is_a_folder(tmp_path):
    assert len(open_dataset(as_folder(tree({"cat": 3}), tmp_path / "pets.zip"))) == 3


@needs_shared
def test_a_real_archive_has_its_known_rows_and_splits():
    dataset = open_dataset(CIFAR)

    splits = np.asarray(dataset.table.split)
    assert (len(dataset), dataset.name, len(dataset.class_names)) == (6000, "cifar10_5k", 10)
    assert (splits == "test").sum() == 1000
    assert 400 < (splits == "val").sum() < 600
    assert dataset.read(5999).size == (32, 32)
