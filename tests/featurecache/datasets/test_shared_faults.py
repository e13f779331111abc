"""The inputs of public bug reports of this field that concern folders: each passes as the table beside them says."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from featurecache.datasets import open_dataset
from tests.shared_data import SHARED, needs_shared

pytestmark = needs_shared


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder in which a case is made."""

    def make(case):
        place = tmp_path_factory.mktemp(case)
        subprocess.run([sys.executable, SHARED / "faults/make_faults.py", case, place], check=True)
        return place

    return make


def test_no_split_name_is_ever_a_class(made):
    place = made("splits")

    for name, classes in (("mri", 3), ("dev", 2), ("eval", 2), ("wrapped", 2), ("twice", 2)):
        dataset = open_dataset(place / name)
        assert len(dataset.class_names) == classes
        assert "test" in dataset.table.split and "train" in dataset.table.split


def test_folders_of_domains_give_domains(made):
    dataset = open_dataset(made("domains") / "pacs")

    assert dataset.class_names == ("dog", "house")
    assert Counter(dataset.table.domain) == {"art_painting": 16, "photo": 16, "sketch": 16}


def test_every_form_that_pillow_reads_is_read_by_content(made):
    dataset = open_dataset(made("suffixes") / "mixed")

    assert (len(dataset), dataset.class_names) == (20, ("cat", "dog", "owl"))
    assert {dataset.read(row).size for row in range(20)} == {(32, 32)}
