"""Data sets of torchvision keep the contract; what is not on disk is not fetched unless the name asks for it."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from featurecache.datasets import open_dataset
from featurecache.errors import DatasetError, DatasetNotFoundError, UnreadableSampleError
from tests.featurecache.datasets.contract import DatasetContract
from tests.featurecache.datasets.pictures import as_folder, encoded


def as_mnist(root: Path, counts: dict[str, int]) -> np.ndarray:
    """Write files in the format of MNIST: grey noise, classes in turn; return the pixels of train."""
    folder, made = root / "MNIST/raw", {}
    folder.mkdir(parents=True)
    for seed, (part, count) in enumerate(counts.items()):
        made[part] = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, count, 28, 28) + made[part].tobytes()
        )
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
    return made["train"]


def country(root: Path) -> str:
    parts = {"train": 6, "valid": 3, "test": 4}
    files = {
        f"country211/{part}/{label}/{i}.jpg": encoded(i + 10 * (label == "AT"))
        for part, count in parts.items() for label in ("AT", "CH") for i in range(count)
    }  # fmt: skip
    return as_folder(files, root)


class TestMnist(DatasetContract):
    def spec(self, folder):
        as_mnist(folder, {"train": 60, "t10k": 30})
        return f"torchvision:MNIST?root={folder}"


def test_pictures_classes_and_splits_are_those_of_torchvision(tmp_path):
    pixels = as_mnist(tmp_path, {"train": 60, "t10k": 30})

    dataset = open_dataset(f"torchvision:MNIST?root={tmp_path}")

    rows = {name: row for row, name in enumerate(dataset.table.sample_id)}
    row = rows["train/0000042"]
    np.testing.assert_array_equal(np.asarray(dataset.read(row)), np.repeat(pixels[42][..., None], 3, axis=2))
    assert dataset.class_names[dataset.table.target[row]] == "2 - two"
    where = Counter(
        (name.split("/")[0], split) for name, split in zip(dataset.table.sample_id, dataset.table.split, strict=True)
    )
    assert where["test", "test"] == 30
    assert where["train", "train"] + where["train", "val"] == 60
    assert dataset.identity["split_rule"] == "torchvision, val 10 % of train, seed 0"


def test_one_part_alone_keeps_its_sample_ids(tmp_path):
    as_mnist(tmp_path, {"train": 60, "t10k": 30})

    both, test = (open_dataset(f"torchvision:MNIST?root={tmp_path}{more}") for more in ("", "&split=test"))

    assert len(test) == 30
    assert set(test.table.sample_id) == {name for name in both.table.sample_id if name.startswith("test/")}
    assert open_dataset(test.spec).identity == test.identity


def test_parts_of_any_name_are_splits(tmp_path):
    dataset = open_dataset(f"torchvision:Country211?root={country(tmp_path)}")

    assert Counter(dataset.table.split) == {"train": 12, "test": 8, "val": 6}
    assert dataset.identity["split_rule"] == "torchvision"
    assert dataset.class_names == ("AT", "CH")


def test_content_covers_the_pixels(tmp_path):
    root = country(tmp_path)
    spec = f"torchvision:Country211?root={root}"
    before = {kind: open_dataset(spec, fingerprint=kind).identity for kind in ("sizes", "content")}
    (tmp_path / "country211/train/AT/0.jpg").write_bytes(encoded(77))

    assert open_dataset(spec).identity == before["sizes"]
    assert open_dataset(spec, fingerprint="content").identity != before["content"]


def test_a_damaged_file_is_a_row_that_cannot_be_read(tmp_path):
    root = country(tmp_path)
    dataset = open_dataset(f"torchvision:Country211?root={root}")
    (tmp_path / "country211/train/AT/1.jpg").write_bytes(b"no picture")

    with pytest.raises(UnreadableSampleError, match="cannot read 'train/0000001': cannot identify image"):
        dataset.read(list(dataset.table.sample_id).index("train/0000001"))


def test_options_go_to_the_class_and_a_set_without_parts_is_divided():
    dataset = open_dataset("torchvision:FakeData?size=60&image_size=[3, 8, 8]&num_classes=3")

    assert (len(dataset), dataset.read(0).size) == (60, (8, 8))
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.identity["split_rule"] == "digest 80/20, val 10 % of train, seed 0"
    assert open_dataset(dataset.spec).identity == dataset.identity


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("MNSIT?root=x", "no data set of images called 'MNSIT'. Did you mean 'MNIST'"),
        ("MNIST", r"MNIST lies somewhere: say torchvision:MNIST\?root=PATH"),
        ("MNIST?root=x&splt=train", "has the options splt. Known here: download, root, split"),
        ("MNIST?root=x&split=val", "has the parts train and test, not 'val'"),
        ("DTD?root=x&split=half", "DTD cannot be opened: Unknown value 'half' for argument split"),
        ("FakeData?split=train", "FakeData has no parts, so split=train cannot be"),
        ("FakeData?download=true", "has the options download. Known here"),
    ],
)
def test_what_torchvision_has_not_is_refused(spec, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"torchvision:{spec}")


def test_what_is_not_on_disk_is_refused_with_the_ways_out(tmp_path):
    for name in ("MNIST", "DTD", "CIFAR10"):
        with pytest.raises(DatasetNotFoundError, match=f"finds no {name} train in .*root=PATH, .*download=true"):
            open_dataset(f"torchvision:{name}?root={tmp_path}")

    assert list(tmp_path.rglob("*.*")) == []


def test_a_download_is_asked_for_and_told(tmp_path, monkeypatch, caplog):
    as_mnist(tmp_path, {"train": 60, "t10k": 30})
    asked = []
    monkeypatch.setattr("torchvision.datasets.MNIST.download", lambda self: asked.append(self.root))

    with caplog.at_level("INFO", logger="featurecache"):
        dataset = open_dataset(f"torchvision:MNIST?root={tmp_path}&download=true")

    assert asked == [str(tmp_path)] * 2
    assert "torchvision downloads MNIST from ['https://" in caplog.text and str(tmp_path) in caplog.text
    assert dataset.spec == f"torchvision:MNIST?root={tmp_path}"


def test_labels_that_are_no_single_class_are_refused(monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, index: (None, "two words"))

    with pytest.raises(DatasetError, match="FakeData does not give one class for each image"):
        open_dataset("torchvision:FakeData?size=4&image_size=[3, 8, 8]")


def test_other_tasks_are_refused():
    with pytest.raises(DatasetError, match="one class, and task regression was asked for"):
        open_dataset("torchvision:FakeData", task="regression")
