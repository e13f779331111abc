"""How users name data sets: a path says what it is, a prefix says it for them."""

from __future__ import annotations

import pytest

from featurecache.datasets import open_dataset
from featurecache.errors import ConfigError
from tests.featurecache.datasets.pictures import as_folder, as_zip, tree


def test_a_name_that_is_neither_a_path_nor_a_known_prefix_is_refused_with_the_known():
    with pytest.raises(
        ConfigError, match="'imagenet:val' is neither a path nor NAME:ARGUMENT with NAME one of archive"
    ):
        open_dataset("imagenet:val")


def test_an_empty_name_is_refused():
    with pytest.raises(ConfigError, match="no data set is named"):
        open_dataset("")


def test_a_prefix_and_what_lies_there_lead_to_the_same_data_set(tmp_path):
    folder = as_folder(tree({"cat": 3}), tmp_path / "pets")
    archive = as_zip(tree({"cat": 3}), tmp_path / "pets.zip")

    identities = [open_dataset(s).identity for s in (folder, f"image_folder:{folder}", archive, f"archive:{archive}")]

    assert identities == identities[:1] * 4


def test_what_lies_there_wins_over_a_prefix_of_the_same_name(tmp_path, monkeypatch):
    as_folder(tree({"cat": 3}), tmp_path / "digits")
    monkeypatch.chdir(tmp_path)

    assert len(open_dataset("digits")) == 3
