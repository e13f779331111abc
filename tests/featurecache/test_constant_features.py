"""A store whose rows are all equal, or equal within a class, is found out; one that varies by a single row is not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featurecache.constant_features import find_constant_features
from featurecache.stores import open_store
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from save_features import run as extract
from tests.extraction_samples import settings


def folder_of(tmp_path, **classes):
    """Write grey pictures of the given values into class folders."""
    for name, values in classes.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, value in enumerate(values):
            Image.fromarray(np.full((32, 32), value, np.uint8)).save(tmp_path / f"photos/{name}/{number:02d}.png")
    return tmp_path / "photos"


@pytest.fixture
def store_of(tmp_path):
    """Return what extracts such pictures, and their store."""

    def made(dtype="float16", **classes):
        extract(settings(folder_of(tmp_path, **classes), tmp_path / "x.zarr", dtype=dtype))
        return open_store(tmp_path / "x.zarr")

    return made


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_equal_pictures_are_told_when_they_are_extracted_and_when_a_head_is_trained(store_of, tmp_path, caplog, dtype):
    store = store_of(dtype, cat=[9] * 10, dog=[9] * 11)

    assert "all 21 rows of every array (" in caplog.text and "data check" in caplog.text
    assert len(find_constant_features(store)) == 1
    caplog.clear()
    train(TrainHeadConfig(store=tmp_path / "x.zarr", head="ridge", out=tmp_path / "run", quiet=True))
    assert "all 21 rows of every array (" in caplog.text


def test_one_other_picture_is_enough(store_of, caplog):
    store = store_of(cat=[9] * 200, dog=[*[9] * 100, 200, *[9] * 100])

    found = find_constant_features(store)

    assert found and "every array" not in found[0]
    assert "in embedding all rows are equal within 1 of 2 classes ('cat'): to the model" in found[0]
    assert found[0] in caplog.text


def test_pictures_that_differ_are_not_told_of(store_of, caplog):
    assert find_constant_features(store_of(cat=range(20), dog=range(60, 80), owl=[99])) == []
    assert "equal" not in caplog.text
