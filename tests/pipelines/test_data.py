"""`data check` counts what a data set holds, and finds what would spoil a measure: copies, and what cannot be read."""

from __future__ import annotations

import io
import json

import pytest
from click.testing import CliRunner
from PIL import Image

import cli
from featurecache.errors import ConfigError, StoreMismatchError
from featurecache.stores import open_store
from pipelines.data import SHOWN, DataConfig, run
from save_features import SaveFeaturesConfig
from save_features import run as extract
from tests.featurecache.datasets.pictures import as_folder, encoded, tree
from tests.shared_data import SHARED, needs_shared

FOLDERS = {"train/cat": 4, "train/dog": 3, "test/cat": 2, "test/dog": 1, "val/cat": 1}


def checked(spec, **options):
    return run(DataConfig(what="check", data=str(spec), quiet=True, **options))


def as_png(jpeg: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(file, "PNG")
    return file.getvalue()


def test_rows_are_counted_by_split_and_class(tmp_path):
    report = checked(as_folder(tree(FOLDERS), tmp_path / "pets"))

    assert (report.rows, report.unlabelled, report.splits) == (11, 0, {"train": 7, "val": 1, "test": 3})
    assert report.columns == {
        "class": {"cat": {"train": 4, "val": 1, "test": 2}, "dog": {"train": 3, "test": 1}}
    }  # fmt: skip
    assert report.sizes == {"smallest": 9, "largest": 12}
    assert list(report.tables()[-1].notes) == ["no picture is there twice", "every image can be read"]


def test_domains_and_groups_are_counted_where_there_are_some(tmp_path):
    as_folder({f"{i}.jpg": encoded(i) for i in range(4)}, tmp_path)
    lines = ["0.jpg,a,train,photo,ann", "1.jpg,b,test,photo,bob", "2.jpg,a,test,sketch,bob", "3.jpg,b,train,sketch,"]
    (tmp_path / "x.csv").write_text("\n".join(["path,label,split,domain,group", *lines]))

    columns = checked(tmp_path / "x.csv").columns

    assert columns["domain"].keys() == {"photo", "sketch"}
    assert columns["group"]["bob"] == {"test": 2}
    assert sum(columns["domain"]["photo"].values()) == 2


@pytest.mark.parametrize(
    ("task", "header", "labels", "classes", "unlabelled"),
    [
        ("multilabel", "label", ["a|b", "b", "", "|"], {"a": 1, "b": 2}, 1),
        ("regression", "label", ["1", "2.5", "", "4"], None, 1),
        ("classification", "label", ["a", "b", "", ""], {"a": 1, "b": 1}, 2),
    ],
)
def test_labels_of_every_task_are_counted(task, header, labels, classes, unlabelled, tmp_path):
    as_folder({f"{i}.jpg": encoded(i) for i in range(4)}, tmp_path)
    (tmp_path / "x.csv").write_text(
        "\n".join([f"path,{header}", *(f"{i}.jpg,{label}" for i, label in enumerate(labels))])
    )

    report = checked(tmp_path / "x.csv", task=task)

    found = report.columns.get("class")
    assert (found and {name: sum(counts.values()) for name, counts in found.items()}) == classes
    assert (report.task, report.unlabelled) == (task, unlabelled)


def test_a_picture_that_is_there_twice_is_found_within_and_across_splits(tmp_path):
    files = tree(FOLDERS)
    files["train/cat/copy.jpg"] = files["train/cat/000.jpg"]
    files["test/dog/repacked.png"] = as_png(files["train/cat/001.jpg"])

    report = checked(as_folder(files, tmp_path / "pets"))

    assert {tuple(d.sample_ids): (d.across, d.same_target) for d in report.duplicates} == {
        ("train/cat/000.jpg", "train/cat/copy.jpg"): (False, True),
        ("test/dog/repacked.png", "train/cat/001.jpg"): (True, False),
    }
    notes = " ".join(report.tables()[-1].notes)
    assert "1 pictures are in several splits: what is tested was learned from" in notes
    assert "1 pictures have several labels" in notes


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path):
    files = {**tree(FOLDERS), "train/cat/zero.jpg": b"", "test/dog/text.jpg": b"no picture"}

    report = checked(as_folder(files, tmp_path / "pets"))

    assert report.rows == 13
    assert report.unreadable.keys() == {"train/cat/zero.jpg", "test/dog/text.jpg"}
    assert report.unreadable["train/cat/zero.jpg"] == "the file is empty"
    assert "2 images cannot be read" in report.tables()[-1].notes[-1]


def test_long_tables_are_cut_for_people_and_whole_for_machines(tmp_path):
    classes = {f"class{i:02d}": 1 for i in range(SHOWN + 7)}

    report = checked(as_folder(tree(classes), tmp_path / "many"))

    shown = report.tables()[1]
    assert len(shown.rows) == SHOWN + 1
    assert shown.rows[-1][:2] == ("...", "7 more")
    assert {len(row) for row in shown.rows} == {len(shown.columns)}
    assert len(report.json()["columns"]["class"]) == SHOWN + 7


def test_one_thread_finds_what_eight_find(tmp_path):
    files = tree({"cat": 40, "dog": 40})
    files["dog/copy.jpg"] = files["cat/003.jpg"]
    root = as_folder(files, tmp_path / "pets")

    assert checked(root, decode_threads=1).json() == checked(root, decode_threads=8).json()


def test_the_command_prints_tables_or_json_and_ends_well_whatever_it_finds(tmp_path):
    root = as_folder({**tree(FOLDERS), "train/cat/zero.jpg": b""}, tmp_path / "pets")

    table = CliRunner().invoke(cli.main, ["data", "check", root])
    machine = CliRunner().invoke(cli.main, ["data", "check", root, "--json"])

    assert (table.exit_code, machine.exit_code) == (0, 0)
    assert "pets: 12 rows" in table.stdout and "the file is empty" in table.stdout
    assert json.loads(machine.stdout)["unreadable"] == {"train/cat/zero.jpg": "the file is empty"}


def test_an_act_that_is_not_known_and_no_threads_are_refused():
    result = CliRunner().invoke(cli.main, ["data", "clean", "photos"])

    assert result.exit_code == 2
    assert "what must be one of check, got 'clean'" in result.stderr
    with pytest.raises(ConfigError, match="decode_threads must be positive, got 0"):
        checked("photos", decode_threads=0)


def test_a_store_names_the_kind_of_fingerprint_and_refuses_another(tmp_path):
    root = as_folder(tree({"cat": 6, "dog": 6}), tmp_path / "pets")
    asked = {"data": root, "backbone": "demo", "out": tmp_path / "x.zarr", "layers": "last", "quiet": True}

    extract(SaveFeaturesConfig(**asked, fingerprint="content"))

    assert open_store(tmp_path / "x.zarr").header.dataset["fingerprint"].startswith("content:")
    with pytest.raises(StoreMismatchError, match="fingerprint"):
        extract(SaveFeaturesConfig(**asked))


@pytest.mark.parametrize(("task", "labels"), [("multilabel", "a|b,b,a,|"), ("regression", "1,2,0.5,-3")])
def test_the_task_reaches_the_store(task, labels, tmp_path):
    as_folder({f"{i}.jpg": encoded(i) for i in range(12)}, tmp_path)
    lines = [f"{i}.jpg,{labels.split(',')[i % 4]}" for i in range(12)]
    (tmp_path / "x.csv").write_text("\n".join(["path,label", *lines]))

    extract(SaveFeaturesConfig(
        data=str(tmp_path / "x.csv"), backbone="demo", out=tmp_path / "x.zarr", layers="last", task=task, quiet=True
    ))  # fmt: skip

    store = open_store(tmp_path / "x.zarr")
    assert store.header.task == task
    assert store.table().target.shape == (12, {"multilabel": 2, "regression": 1}[task])


@needs_shared
def test_real_data_is_read_whole():
    report = checked(SHARED / "data/fashion-mnist-900/fashion_mnist_900.zip")

    assert (report.rows, report.unreadable, len(report.columns["class"])) == (900, {}, 10)
