"""Bad images get the same answer wherever they lie: in a folder, in an archive, or named by a manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featurecache.datasets import ImageDataset, open_dataset
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
