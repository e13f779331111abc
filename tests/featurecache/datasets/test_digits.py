"""The digits keep the contract of data sets; they need no file and no argument."""

from __future__ import annotations

import numpy as np
import pytest

from featurecache.datasets import open_dataset
from featurecache.errors import DatasetError
from tests.featurecache.datasets.contract import DatasetContract


class TestDigits(DatasetContract):
    def spec(self, folder):
        return "digits"


def test_the_brightest_ink_is_white_and_paper_is_black():
    dataset = open_dataset("digits")

    picture = np.asarray(dataset.read(0))

    assert picture.shape == (8, 8, 3)
    assert (picture.min(), picture.max()) == (0, 239)  # 15 of 16 is the strongest ink of the first digit


def test_digits_take_no_argument():
    with pytest.raises(DatasetError, match="digits takes no argument, got 'train'"):
        open_dataset("digits:train")


def test_a_data_set_displays_its_size_and_its_splits():
    dataset = open_dataset("digits")

    assert repr(dataset) == "<ImageDataset digits: 1797 images, classification, 10 classes>"
    assert repr(dataset.table) == "<RowTable: 1797 rows>"
    assert "<th>images</th>" in dataset._repr_html_() and "<td>train</td>" in dataset._repr_html_()


def test_its_row_table_is_a_data_frame():
    pytest.importorskip("pandas")
    dataset = open_dataset("digits")

    frame = dataset.table.to_pandas(dataset.class_names)

    assert frame.columns.tolist() == ["sample_id", "label", "target", "split", "domain", "group"]
    assert (frame.label == [dataset.class_names[target] for target in frame.target]).all()
