"""Pictures are known by their content where the suffix does not say it; what is no picture is named, and never opened in vain."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from PIL import Image

from featurecache.datasets import image_folder, open_dataset
from featurecache.datasets._recognising import SUFFIXES, has_image_suffix, is_picture
from featurecache.errors import DatasetError
from tests.featurecache.datasets.pictures import as_folder, as_tar, as_zip, encoded, pixels

FORMS = {".jpg": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".avif": "AVIF", ".pnm": "PPM",
         ".webp": "WEBP", ".dib": "DIB"}  # fmt: skip
PACKERS = {"folder": as_folder, ".zip": as_zip, ".tar": as_tar}
everywhere = pytest.mark.parametrize("kind", list(PACKERS))
HEAVY = {"cat/clip.mp4": b"\0\0\0\x18ftypmp42" + bytes(500), "cat/notes.txt": b"P1 is the best of all", "boxes.json": b"{}",
         "cat/empty": b"", "cat/x": b"x", "dog/bm.log": b"BM means something else here", "dog/GIF": b"GIF89a"}  # fmt: skip


def packed(files, folder, kind):
    return PACKERS[kind](files, folder / ("data" if kind == "folder" else f"data{kind}"))


@everywhere
def test_every_form_that_pillow_reads_is_a_row_by_any_suffix_and_without_one(kind, tmp_path):
    files = {f"cat/{n}{suffix}": encoded(n, form) for n, (suffix, form) in enumerate(FORMS.items())}
    files |= {f"dog/{form}": encoded(n, form) for n, form in enumerate(sorted(set(FORMS.values()) - {"DIB"}))}
    files |= {f"dog/{form}.data": encoded(n, form) for n, form in enumerate(sorted(set(FORMS.values()) - {"DIB"}))}

    dataset = open_dataset(packed(files, tmp_path, kind))

    assert sorted(dataset.table.sample_id) == sorted(files)
    assert dataset.left_out.files == ()
    for row, name in enumerate(dataset.table.sample_id):
        if name.startswith("dog"):
            assert np.abs(np.asarray(dataset.read(row)).astype(int) - _decoded(files[name])).max() <= 1


def _decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@everywhere
def test_a_class_of_unusual_suffixes_does_not_vanish(kind, tmp_path):
    files = {f"owl/{n}.jfif": encoded(n) for n in range(3)} | {f"cat/{n}.jpg": encoded(n) for n in range(3)}

    assert open_dataset(packed(files, tmp_path, kind)).class_names == ("cat", "owl")


@everywhere
def test_what_is_no_picture_is_counted_and_named(kind, tmp_path, caplog):
    files = {f"{c}/{n}.jpg": encoded(n) for c in ("cat", "dog") for n in range(2)}

    dataset = open_dataset(packed({**files, **HEAVY, ".DS_Store": b"x", "cat/Thumbs.db": b"x"}, tmp_path, kind))

    assert list(dataset.left_out.files) == sorted(HEAVY)
    assert sorted(dataset.table.sample_id) == sorted(files)
    assert (
        "left out as no pictures: 7 files: 3 without suffix ('cat/empty', ...), 1 .json ('boxes.json')" in caplog.text
    )


@everywhere
def test_nothing_is_said_where_all_is_pictures(kind, tmp_path, caplog):
    files = {f"{c}/{n}.jpg": encoded(n) for c in ("cat", "dog") for n in range(20)}
    open_dataset(packed(files, tmp_path, kind))

    assert caplog.text == ""


def test_folders_without_a_picture_are_named_once_by_the_topmost(tmp_path, caplog):
    as_folder({"train/cat/1.jpg": encoded(), "labels/cat/1.txt": b"x"}, tmp_path)
    for name in ("train/owl", "train/fox/young", "labels/dog"):
        (tmp_path / name).mkdir(parents=True)

    dataset = open_dataset(tmp_path)

    assert list(dataset.left_out.folders) == ["labels", "train/fox", "train/owl"]
    assert "folders without a picture (3): 'labels', 'train/fox', 'train/owl'" in caplog.text


def test_an_empty_folder_in_a_zip_is_named(tmp_path):
    path = as_zip({"cat/1.jpg": encoded(), "owl/": b"", "__MACOSX/": b""}, tmp_path / "x.zip")

    assert open_dataset(path).left_out.folders == ("owl",)


def test_a_file_with_the_suffix_of_a_picture_is_not_opened(tmp_path, monkeypatch):
    as_folder({f"cat/{n}{suffix}": encoded() for n, suffix in enumerate(sorted(SUFFIXES))}, tmp_path)
    opened = []
    monkeypatch.setattr(image_folder, "_first_bytes", lambda path, count: opened.append(path) or b"")

    assert len(open_dataset(tmp_path, fingerprint="names")) == len(SUFFIXES)
    assert opened == []


def test_of_a_large_file_that_is_no_picture_few_bytes_are_read(tmp_path, monkeypatch):
    as_folder({"cat/1.jpg": encoded(), "cat/film": b"\x1aE\xdf\xa3" + bytes(10**6)}, tmp_path)
    asked = []
    whole = image_folder._first_bytes
    monkeypatch.setattr(image_folder, "_first_bytes", lambda path, count: asked.append(count) or whole(path, count))

    open_dataset(tmp_path)

    assert asked == [64]


def test_raw_files_of_cameras_are_no_pictures_although_a_tiff_is_in_them(tmp_path):
    as_folder({"cat/1.jpg": encoded(), "cat/2.NEF": encoded(kind="TIFF"), "cat/3.svs": encoded(kind="TIFF")}, tmp_path)

    assert open_dataset(tmp_path).left_out.files == ("cat/2.NEF", "cat/3.svs")


def test_pipes_and_devices_are_named_and_never_opened(tmp_path):
    as_folder({"cat/1.jpg": encoded()}, tmp_path)
    os.mkfifo(tmp_path / "cat/pipe")
    (tmp_path / "cat/zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "cat/random").symlink_to("/dev/random")

    assert open_dataset(tmp_path).left_out.files == ("cat/pipe", "cat/random", "cat/zero.jpg")


def test_a_folder_of_archives_alone_is_answered_with_their_names(tmp_path):
    as_zip({"cat/1.jpg": encoded()}, tmp_path / "train.zip")

    with pytest.raises(
        DatasetError, match=r"holds no image, but 1 files: 1 \.zip .*Name an archive in it \(train.zip\)"
    ):
        open_dataset(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".JPeG", ".avif", ".tif"])
def test_suffixes_are_known_in_any_case(suffix):
    assert has_image_suffix(f"a b.c{suffix}")


def test_all_suffixes_that_pillow_gives_to_the_usual_formats_are_known():
    Image.init()
    usual = {"JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"}

    assert {suffix for suffix, form in Image.registered_extensions().items() if form in usual} == SUFFIXES


@pytest.mark.parametrize(
    "content", [b"", b"P", b"BM", b"\xff\xd8", b"II*\0", b"RIFF0000WEBP", b"\0" * 3, b"\x89PNG\r\n\x1a\n"]
)
def test_the_beginning_of_a_picture_alone_is_none(content):
    assert not is_picture("x", len(content), lambda count: content[:count])


def test_a_picture_is_known_by_as_few_bytes_as_its_header_needs(tmp_path):
    file = io.BytesIO()
    Image.fromarray(pixels(1)).save(file, "PNG")

    assert is_picture("no suffix", -1, lambda count: file.getvalue()[:count])


@pytest.mark.parametrize(("files", "told"), [
    ({"images/1.jpg": b"", "labels.csv": b"path,label"}, True), ({"1.jpg": b"", "train.tsv": b"path"}, True),
    ({"cat/1.jpg": b"", "dog/1.jpg": b"", "labels.csv": b"path,label"}, False), ({"1.jpg": b"", "notes.txt": b"x"}, False),
])  # fmt: skip
def test_a_table_beside_pictures_without_classes_is_told_of(files, told, tmp_path, caplog):
    open_dataset(as_folder({name: content or encoded() for name, content in files.items()}, tmp_path))

    assert ("the folders give no classes, but" in caplog.text) == told
