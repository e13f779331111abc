"""What lies at a path is recognised, and the message names the command that would be right."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

from featurecache.datasets import open_dataset
from featurecache.errors import ConfigError, DatasetError, RunError, StoreNotFoundError
from featurecache.path_kinds import explain_path, identify_path, suggest_path
from featurecache.runs import read_trained
from featurecache.stores import open_store
from pipelines.inspect import InfoConfig, info
from pipelines.predicting.gathering import gathered
from pipelines.verify import VerifyConfig
from pipelines.verify import run as verify
from tests.pipelines.stores import made_store


def picture(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path, kind)
    return path


def run_folder(path: Path, **settings: object) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"store": "/data/x.zarr", **settings}))
    (path / "record.json").write_text(json.dumps({"class_names": ["a", "b"]}))
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """One of everything."""
    made_store(tmp_path / "stores/x.zarr")
    made_store(tmp_path / "stores/y.h5")
    zarr.create_group(str(tmp_path / "other.zarr"))
    run_folder(tmp_path / "runs/one")
    run_folder(tmp_path / "runs/two")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/config.json").write_text('{"store": "/data/x.zarr"}')
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison/config.json").write_text('{"stores": ["/data/x.zarr", "/data/y.zarr"]}')
    (tmp_path / "comparison/record.json").write_text("{}")
    (tmp_path / "exported").mkdir()
    for name in ("predict.py", "model.py", "config.json"):
        (tmp_path / "exported" / name).write_text("{}")
    picture(tmp_path / "photos/train/cat/no suffix", "JPEG")
    picture(tmp_path / "photo.webp", "WEBP")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(tmp_path / "photo.webp", "cat/1.webp")
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "photo.webp", "cat/1.webp")
    (tmp_path / "labels.csv").write_text("path,label\n")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/readme.md").write_text("words")
    return tmp_path


KINDS = {
    "stores/x.zarr": "store", "stores/y.h5": "store", "stores": "folder of stores", "other.zarr": "zarr", "runs/one": "run",
    "runs": "folder of runs", "unfinished": "unfinished run", "comparison": "comparison", "exported": "export",
    "photos": "images", "photos/train/cat/no suffix": "image", "photo.webp": "image", "photos.zip": "archive",
    "photos.tar.gz": "archive", "labels.csv": "table", "weights.safetensors": "weights", "empty": "empty folder",
    "text": "folder", "text/readme.md": "file", "nowhere": "nothing",
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_everything_is_known_for_what_it_is(name, kind, place):
    assert identify_path(place / name) == kind


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("runs/one", r"one is not a feature store: it is the folder of a run. Name the store .*: /data/x.zarr"),
        ("comparison", r"it is the folder of a comparison. .*: /data/x.zarr, /data/y.zarr"),
        ("runs", r"runs is not a feature store: it is a folder of runs. .*two\) as one page: featurecache report"),
        ("stores", r"it is a folder with stores in it. Name one of them: .*x.zarr, .*y.h5"),
        (
            "photos",
            r"it is a folder of images. .* featurecache extract-features .*photos --backbone NAME --out photos.zarr",
        ),
        ("photos.zip", r"it is an archive. .* extract-features .*photos.zip --backbone NAME --out photos.zarr"),
        ("photos.tar.gz", r"it is an archive. .* --out photos.zarr"),
        ("labels.csv", r"it is a table. .* extract-features .*labels.csv"),
        ("photo.webp", r"it is a picture. .* featurecache predict RUN"),
        ("exported", r"it is an exported run. It predicts by itself: python .*exported/predict.py IMAGE"),
        ("other.zarr", r"it is a Zarr group of another program. It has no ledger"),
        ("weights.safetensors", "it is a file of weights. Give it as --weights"),
        ("stores/x", r"x does not exist. Did you mean .*stores/x.zarr\?"),
        ("stores/x.zar", r"Did you mean .*stores/x.zarr\?"),
        (
            "stores/xx.zarr",
            r"xx.zarr does not exist. Did you mean .*stores/x.zarr\? Make one with: featurecache extract-",
        ),
    ],
)
def test_where_a_store_is_wanted_what_is_there_instead_is_named_with_the_way(name, match, place):
    with pytest.raises(StoreNotFoundError, match=match):
        open_store(place / name)
    if (place / name).exists():
        with pytest.raises(StoreNotFoundError, match="is not a feature store: it is "):
            verify(VerifyConfig(store=place / name, quiet=True))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "stores/x.zarr",
            "x.zarr is not a run folder: it is a feature store. .* featurecache train-head .*x.zarr --out RUN",
        ),
        ("stores/y.h5", "is not a run folder: it is a feature store"),
        ("photos", "it is a folder of images. To train on it: extract its features first: .* featurecache train-head"),
        ("runs", r"it is a folder of runs. Name one of the runs in it: .*runs/one, .*runs/two"),
        ("exported", "it is an exported run. It predicts by itself"),
        ("photo.webp", "Name the run first, then the pictures: featurecache predict RUN"),
        ("run", r"run is not a run folder \(it has no config.json\). Did you mean .*runs\?"),
    ],
)
def test_where_a_run_is_wanted_too(name, match, place):
    with pytest.raises(RunError, match=match):
        read_trained(place / name)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("stores/x.zarr", "x.zarr is not a data set: it is a feature store. It holds features and no pictures"),
        ("stores/y.h5", "is not a data set: it is a feature store"),
        ("runs/one", "it is the folder of a run. It holds no pictures"),
        ("runs", "it is a folder of runs. It holds no pictures"),
        ("stores", "it is a folder with stores in it. They hold features and no pictures"),
        ("exported", "it is an exported run"),
        ("stores/z.zarr", r"z.zarr does not exist, and is named as a feature store is. Did you mean .*x.zarr\?"),
    ],
)
def test_where_pictures_are_wanted_too(name, match, place):
    with pytest.raises(DatasetError, match=match):
        open_dataset(place / name)


def test_the_images_of_a_run_are_those_of_its_config(place):
    run_folder(place / "online", data="/data/photos")

    assert "name the images: /data/photos." in explain_path(place / "online", "data")
    assert "name the images. " in explain_path(place / "runs/one", "data"), "its store is none"


def test_pictures_to_predict_are_no_stores_runs_and_tables(place):
    names = [place / name for name in ("stores/x.zarr", "runs/one", "labels.csv")]

    with pytest.raises(DatasetError) as refused:
        gathered(names)

    said = str(refused.value)
    assert "x.zarr holds no pictures to predict: it is a feature store" in said
    assert "one holds no pictures to predict: it is the folder of a run" in said
    assert "labels.csv is no picture: name image files" in said


def test_info_says_how_to_look_at_what_is_neither_a_store_nor_a_run(place):
    with pytest.raises(
        StoreNotFoundError, match="it is a data set or its pictures. To look at them: featurecache data check"
    ):
        info(InfoConfig(store=place / "photos"))
    with pytest.raises(StoreNotFoundError, match=r"it is a folder of runs. Name one of the runs in it: .*runs/one"):
        info(InfoConfig(store=place / "runs"))
    with pytest.raises(StoreNotFoundError, match=r"a folder with stores in it. Name one of them: .*x.zarr"):
        info(InfoConfig(store=place / "stores"))


def test_a_store_whose_folder_was_renamed_is_told_by_its_name(place):
    (place / "stores/x.zarr").rename(place / "features")

    with pytest.raises(
        StoreNotFoundError,
        match="holds a feature store, but its name does not end in .zarr.* Rename it: .*features.zarr",
    ):
        open_store(place / "features")


def test_a_file_of_another_program_with_the_suffix_is_still_told_so(place):
    with h5py.File(place / "z.h5", "w") as file:
        file["x"] = 1

    with pytest.raises(StoreNotFoundError, match="is there, but it is not a feature store"):
        open_store(place / "z.h5")


def test_of_what_nothing_is_known_the_names_of_stores_are_told(place):
    for name in ("empty", "text", "text/readme.md"):
        assert explain_path(place / name, "store") is None
        with pytest.raises(ConfigError, match="must end in one of"):
            open_store(place / name)


def test_paths_in_commands_can_be_pasted(tmp_path):
    picture(tmp_path / "my photos/cat/1.png")

    assert f"extract-features '{tmp_path}/my photos' --backbone NAME --out 'my photos'.zarr" in explain_path(
        tmp_path / "my photos", "store"
    )


def test_nothing_is_suggested_where_nothing_is_near(tmp_path):
    (tmp_path / "photos").mkdir()

    assert suggest_path(tmp_path / "photo").endswith("photos?") and suggest_path(tmp_path / "zebra") == ""
    assert suggest_path(tmp_path / "gone/photo") == ""
