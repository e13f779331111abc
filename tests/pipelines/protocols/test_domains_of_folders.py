"""Folders of domains run through leave-one-domain-out, from images to the table."""

from __future__ import annotations

import pytest

from featurecache.stores import open_store
from pipelines.run_protocol import RunProtocolConfig, run
from save_features import run as extract
from tests.extraction_samples import settings
from tests.featurecache.datasets.pictures import as_folder, as_zip, tree

FILES = tree({f"{domain}/{name}": 8 for domain in ("art", "photo", "sketch") for name in ("dog", "house")}, ".png")


@pytest.mark.parametrize("pack", [as_folder, as_zip])
def test_every_folder_is_the_target_once(pack, tmp_path):
    place = tmp_path / ("pacs.zip" if pack is as_zip else "pacs")
    extract(settings(pack(FILES, place), tmp_path / "pacs.zarr", layers="last"))

    report = run(RunProtocolConfig(
        protocol="leave-one-domain-out?trials=1&settings=1", stores=(tmp_path / "pacs.zarr",), out=tmp_path / "out",
        heads=("ridge",), quiet=True,
    ))  # fmt: skip

    assert open_store(tmp_path / "pacs.zarr").header.class_names == ("dog", "house")
    assert [row[2] for row in report.tables()[0].rows] == ["art", "photo", "sketch"]
