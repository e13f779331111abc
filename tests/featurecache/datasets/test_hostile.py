"""Bad images get the same answer wherever they lie: in a folder, in an archive, or named by a manifest."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from featurecache.datasets import ImageDataset, open_dataset, read_image
from featurecache.errors import UnreadableSampleError
from tests.featurecache.datasets.pictures import as_folder, as_tar, as_zip
from tests.featurecache.datasets.test_decoding import BAD, DEEP, ODD_BUT_GOOD


def as_manifest(files: dict[str, bytes], root: Path) -> str:
    as_folder(files, root)
    (root / "list.csv").write_text("\n".join(["path,label", *(f"{name},a" for name in files)]))
    return str(root / "list.csv")


LAYOUTS = {"folder": as_folder, "zip": as_zip, "tar": as_tar, "manifest": as_manifest}


def opened(layout: str, files: dict[str, bytes], tmp_path: Path) -> ImageDataset:
    name = f"x.{layout}" if layout in ("zip", "tar") else "x"
    return open_dataset(LAYOUTS[layout]({f"class/{name}": content for name, content in files.items()}, tmp_path / name))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_cannot_be_decoded_is_refused_with_path_and_reason(layout, tmp_path):
    dataset = opened(layout, {name: content for name, (content, _) in BAD.items()}, tmp_path)

    assert len(dataset) == len(BAD)
    for row, sample_id in enumerate(dataset.table.sample_id):
        reason = BAD[sample_id.removeprefix("class/")][1]
        with pytest.raises(UnreadableSampleError, match=f"cannot read '{sample_id}': .*{reason}.*--on-error skip"):
            dataset.read(row)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["zip", "tar", "manifest"])
def test_odd_pictures_are_the_pictures_of_the_folder(layout, tmp_path):
    files = ODD_BUT_GOOD | DEEP
    folder, other = opened("folder", files, tmp_path / "folder"), opened(layout, files, tmp_path)

    assert list(other.table.sample_id) == list(folder.table.sample_id)
    assert other.identity["pixels"] == folder.identity["pixels"] == {"over_8_bits": "full scale"}
    for row in range(len(files)):
        np.testing.assert_array_equal(np.asarray(other.read(row)), np.asarray(folder.read(row)))


def no_files(root: Path) -> dict[str, str]:
    """Make links below a folder of pictures to what is no regular file; return sample id -> what it is."""
    as_folder({"a/good.png": ODD_BUT_GOOD["palette.png"], "b/good.png": ODD_BUT_GOOD["palette.png"]}, root)
    os.mkfifo(root.parent / "pipe")
    (root / "a/pipe.png").symlink_to(root.parent / "pipe")
    (root / "a/zero.png").symlink_to("/dev/zero")
    (root / "a/gone.png").symlink_to("/nowhere/at/all.png")
    return {"a/pipe.png": "it is a pipe", "a/zero.png": "it is a device", "a/gone.png": "No such file"}


@pytest.mark.parametrize("fingerprint", ["sizes", "content", "names"])
def test_pipes_devices_and_links_to_nothing_are_named_and_never_opened(fingerprint, tmp_path):
    expected = no_files(tmp_path / "x")

    dataset = open_dataset(tmp_path / "x", fingerprint=fingerprint)

    place = {name: row for row, name in enumerate(dataset.table.sample_id)}
    for sample_id in expected.keys() & place.keys():
        with pytest.raises(UnreadableSampleError, match=f"cannot read '{sample_id}': {expected[sample_id]}"):
            dataset.read(place[sample_id])
    unseen = expected.keys() - place.keys()
    assert unseen <= set(dataset.left_out.files), "what gives no row is named"
    assert dataset.read(place["a/good.png"]).mode == "RGB"


@pytest.mark.parametrize("name", ["pipe", "zero", "folder"])
def test_predicting_opens_regular_files_alone(name, tmp_path):
    no_files(tmp_path / "x")
    path = {"pipe": tmp_path / "pipe", "zero": Path("/dev/zero"), "folder": tmp_path / "x/a"}[name]

    with pytest.raises(UnreadableSampleError, match=f"cannot read '{path}': it is a (pipe|device|folder), not a file"):
        read_image(path)
