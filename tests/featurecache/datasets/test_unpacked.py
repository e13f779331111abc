"""A tar that is compressed as a whole is read as the folder in it; nothing of it is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from featurecache.datasets import _unpacked, open_dataset
from featurecache.errors import DatasetError
from tests.featurecache.datasets.contract import DatasetContract
from tests.featurecache.datasets.pictures import as_folder, as_tar, tree

CLASSES = {"cat": 20, "dog": 20, "owl": 10}
FORMS = [
    (".tar.gz", "w:gz"),
    (".tgz", "w:gz"),
    (".tar.bz2", "w:bz2"),
    (".tar.xz", "w:xz"),
    (".txz", "w:xz"),
    (".tar", "w:gz"),
]
forms = pytest.mark.parametrize(("suffix", "mode"), FORMS)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Return a folder for temporary files, so that none of another test is counted."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


class TestCompressedTar(DatasetContract):
    def spec(self, folder):
        return as_tar(tree(CLASSES), folder / "pets.tar.gz", "w:gz")


@forms
@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_a_compressed_tar_is_the_folder_it_was_packed_from(suffix, mode, prefix, tmp_path):
    folder = open_dataset(as_folder(tree(CLASSES), tmp_path / "pets"))
    files = {prefix + name: content for name, content in tree(CLASSES).items()}

    archive = open_dataset(as_tar(files, tmp_path / f"pets{suffix}", mode))

    assert archive.identity == folder.identity
    np.testing.assert_array_equal(np.asarray(archive.read(33)), np.asarray(folder.read(33)))


def test_it_is_told_that_and_where_it_is_unpacked(tmp_path, temporary, caplog):
    caplog.set_level("INFO")
    open_dataset(as_tar(tree(CLASSES), tmp_path / "pets.tar.gz", "w:gz"))

    assert f"pets.tar.gz is compressed as a whole: unpacking it into {temporary}, once for this command" in caplog.text
    assert "they are removed when the command ends" in caplog.text


def test_opening_it_again_unpacks_nothing_and_another_content_is_unpacked_anew(tmp_path, temporary):
    path = tmp_path / "pets.tar.gz"
    as_tar(tree(CLASSES), path, "w:gz")
    open_dataset(path)
    open_dataset(path)
    assert len(list(temporary.iterdir())) == 1

    as_tar(tree({"cat": 3, "dog": 3}), path, "w:gz")

    assert len(open_dataset(path)) == 6


def test_the_unpacked_file_goes_when_the_process_ends(tmp_path, temporary):
    path = as_tar(tree({"cat": 3}), tmp_path / "pets.tar.gz", "w:gz")
    code = f"from featurecache.datasets import open_dataset as o; import os; d = o({path!r}); print(d.read(0).size, len(os.listdir({str(temporary)!r})))"

    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert found.stdout.strip() == "(12, 9) 1"
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(tmp_path, temporary):
    open_dataset(as_tar(tree({"cat": 3}), tmp_path / "a.tar.gz", "w:gz"))
    (mine,) = temporary.iterdir()
    left = temporary / f"{_unpacked.PREFIX}left.tar"
    left.write_bytes(b"x")
    for path in (mine, left):
        os.utime(path, (0, 0))

    open_dataset(as_tar(tree({"dog": 3}), tmp_path / "b.tar.gz", "w:gz"))

    assert mine.exists() and not left.exists()


def test_a_file_that_is_cut_off_is_refused_and_leaves_nothing(tmp_path, temporary):
    path = tmp_path / "pets.tar.gz"
    as_tar(tree({"cat": 30}), path, "w:gz")
    path.write_bytes(path.read_bytes()[:-2000])

    with pytest.raises(DatasetError, match="pets.tar.gz is damaged: .*Fetch or pack it again"):
        open_dataset(path)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("content", [b"\x1f\x8b not gzip", b"BZh9 not bzip2", b"\xfd7zXZ\0 not xz"])
def test_bytes_that_only_begin_so_are_refused(content, tmp_path, temporary):
    (tmp_path / "x.tar.gz").write_bytes(content * 20)

    with pytest.raises(DatasetError, match="x.tar.gz is (damaged|not a .zip or .tar)"):
        open_dataset(tmp_path / "x.tar.gz")
    assert list(temporary.iterdir()) == []


def test_a_file_that_grows_beyond_the_disk_is_refused_with_the_way_out(tmp_path, temporary, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=4000))

    with pytest.raises(DatasetError, match="unpacks to more than the 0 MiB .*variable TMPDIR, or unpack the archive"):
        open_dataset(as_tar(tree(CLASSES), tmp_path / "pets.tar.gz", "w:gz"))
    assert list(temporary.iterdir()) == []


def test_zstd_is_refused_with_the_way_out(tmp_path):
    Path(tmp_path, "x.tar").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600))

    with pytest.raises(
        DatasetError, match="compressed with zstd, which is not read here. Unpack it and name the folder"
    ):
        open_dataset(tmp_path / "x.tar")
