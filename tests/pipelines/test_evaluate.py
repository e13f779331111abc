"""A run on other data: classes meet by name, rows of strange ones are said, and stores are measured without an image."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from featurecache.errors import ConfigError, StoreContentsError, StoreMismatchError
from featurecache.stores import open_store
from pipelines import evaluate
from pipelines._training_rows import TrainingRows, describe_overlap
from pipelines.evaluate import EvaluateConfig, run
from pipelines.maintain import ConvertConfig, convert
from pipelines.split import SplitConfig
from pipelines.split import run as split
from tests.pipelines.pictures import CLASSES, picture, pictures, place_with_runs, store_of


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run, and other data: `other` lacks green and has grey; `other.zarr` holds its features."""
    place = place_with_runs(tmp_path_factory.mktemp("evaluate"), ridge={"layers": "concat"})
    pictures(place / "other", {"blue": 5, "grey": 3, "red": 4}, first=70)
    store_of(place / "other", place / "other.zarr")
    return place


def measured(place: Path, *test: object, **settings: object) -> evaluate.Evaluation:
    return run(EvaluateConfig(run_folder=place / "ridge", test=tuple(map(str, test)), **settings))


def test_on_its_own_store_it_is_what_the_record_says(place):
    record = json.loads((place / "ridge/record.json").read_text())["metrics"]["test"]

    (found,) = measured(place, place / "store.zarr").found

    assert found["metrics"] == {name: value for name, value in record.items() if name != "per_class_recall"}
    assert list(found["recall"].values()) == record["per_class_recall"]
    assert found["rows"] == 18 and found["notes"] == ["rows of the split test"]


def test_without_a_test_it_is_measured_on_what_it_was_trained_on(place):
    settings = json.loads((place / "ridge/config.json").read_text())

    assert measured(place).found == measured(place, settings["store"]).found
    assert evaluate.own({"data": "photos.zip", "rows": 6}) == ("photos.zip",), "a run from images names no store"
    with pytest.raises(
        ConfigError, match=r"trained on the store gone\.zarr, which is not there, .* Name one with --test"
    ):
        evaluate.own({**settings, "store": "gone.zarr"})


def test_a_store_and_its_images_give_the_same_and_the_store_needs_no_image(place, monkeypatch):
    images = measured(place, place / "other").found[0]
    monkeypatch.setattr(evaluate.Predictor, "load", lambda *_, **__: pytest.fail("a backbone was built"))

    store = measured(place, place / "other.zarr").found[0]

    assert {**store, "test": ""} == {**images, "test": ""}


def test_classes_meet_by_name_and_strange_ones_are_left_out_and_said(place):
    (found,) = measured(place, place / "other.zarr", split="all").found

    assert found["rows"] == 9 and found["classes"] == list(CLASSES)
    assert found["recall"] == {"blue": 1.0, "green": None, "red": 1.0}
    assert "classes that the data lack: green (the run may still answer them)" in found["notes"]
    assert "classes that the run does not know: grey" in found["notes"]
    assert "3 rows of other classes are left out" in found["notes"]


def test_a_mask_lets_it_choose_among_some_classes_alone(place, tmp_path):
    report = measured(place, place / "store.zarr", classes="red,blue", predictions=tmp_path / "p.parquet")

    lines = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert lines.column_names == ["test", "sample_id", "label", "pred", "prob_blue", "prob_red"]
    assert report.found[0]["rows"] == len(lines) == 12
    assert set(lines.column("pred").to_pylist()) <= {"red", "blue"}
    np.testing.assert_allclose(
        np.add(lines.column("prob_blue").to_numpy(), lines.column("prob_red").to_numpy()), 1, atol=1e-5
    )
    with pytest.raises(ConfigError, match=r"(?s)no class 'rad'.*at least two"):
        measured(place, place / "store.zarr", classes="rad")


def test_several_tests_are_one_table(place, tmp_path):
    report = measured(place, place / "store.zarr", place / "other", out=tmp_path / "new/table.csv")
    measured(place, place / "store.zarr", out=tmp_path / "table.json")

    lines = list(csv.DictReader((tmp_path / "new/table.csv").read_text().splitlines()))
    top1 = [line for line in lines if line["metric"] == "top1"]
    assert [line["test"] for line in top1] == [str(place / "store.zarr"), str(place / "other")]
    assert float(top1[0]["low"]) <= float(top1[0]["value"]) <= float(top1[0]["high"])
    assert {line["metric"] for line in lines} >= {f"recall:{name}" for name in CLASSES}
    assert len(report.tables()[0].rows) == 2 and report.tables()[1].columns[1:] == tuple(line["test"] for line in top1)
    assert json.loads((tmp_path / "table.json").read_text())["tests"][0]["rows"] == 18


def test_rows_that_trained_the_head_are_no_test(place):
    (found,) = measured(place, place / "store.zarr", split="all").found

    assert found["rows"] == 54
    assert any("of these rows trained the head: this is no test" in note for note in found["notes"])


def test_intervals_are_of_groups_where_the_data_have_them(place, tmp_path):
    rows = [f"{place}/photos/test/{name}/{n}.jpg,{name},patient {n % 2}" for name in CLASSES for n in range(50, 56)]
    (tmp_path / "groups.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n")

    (found,) = measured(place, tmp_path / "groups.csv").found

    assert (found["rows"], found["groups"]) == (18, 2)


def test_a_store_of_other_features_is_refused_with_what_differs(place, tmp_path):
    other = store_of(place / "other", tmp_path / "other.zarr", weights="random:1")
    small = store_of(place / "other", tmp_path / "small.zarr", layers="last")

    with pytest.raises(StoreMismatchError, match=r"(?s)weights: the run has.*Name its data set"):
        measured(place, other)
    with pytest.raises(StoreContentsError, match=r"does not hold layers/cls/00.*--extend"):
        measured(place, small)


def test_data_without_a_class_of_the_run_are_refused(place, tmp_path):
    pictures(tmp_path / "strange", {"grey": 3, "pink": 3})

    with pytest.raises(ConfigError, match=r"share no class: it has grey, pink; the run blue, green, red"):
        measured(place, tmp_path / "strange")


def test_an_unreadable_image_is_left_out_and_counted(place, tmp_path):
    shutil.copytree(place / "other", tmp_path / "bad")
    (tmp_path / "bad/red/70.jpg").write_bytes(b"no picture")

    (found,) = measured(place, tmp_path / "bad", on_error="skip").found

    assert found["rows"] == 8 and "1 images could not be read and are left out" in found["notes"]


def test_everything_wrong_with_the_settings_is_said_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*\.csv or \.json.*\.parquet"):
        EvaluateConfig(run_folder=tmp_path, test=("x",), out=tmp_path / "t.txt", predictions=tmp_path / "p.csv")


def test_a_run_that_trained_its_backbone_does_not_read_frozen_features(place, tmp_path):
    shutil.copytree(place / "ridge", tmp_path / "ridge")
    record = tmp_path / "ridge/record.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "trained_backbone_parameters": 7}))

    with pytest.raises(StoreMismatchError, match="the run trained its backbone, so .* Name the images instead"):
        run(EvaluateConfig(run_folder=tmp_path / "ridge", test=(str(place / "store.zarr"),)))


@pytest.fixture(scope="module")
def elsewhere(place: Path) -> Path:
    """Copies of the store of the run: one as it is, one in one file, one with other features of the same ids."""
    store, folder = place / "store.zarr", place / "elsewhere"
    folder.mkdir()
    shutil.copytree(store, folder / "copy.zarr")
    convert(ConvertConfig(store=store, out=folder / "copy.h5"))
    return folder


@pytest.mark.parametrize("name", ["copy.zarr", "copy.h5"])
def test_training_images_are_recognised_in_any_store_and_said_first(place, elsewhere, name):
    record = json.loads((place / "ridge/record.json").read_text())

    report = measured(place, elsewhere / name, split="all")

    (first,) = report.tables()[0].notes
    assert first == (
        f"{elsewhere / name}: {record['rows']['train']} of these {report.found[0]['rows']} rows are training images of the "
        f"run and {record['rows']['val']} are images that it was chosen on (same sample ids, equal features): this is no test of it"
    )
    assert first.endswith(report.json()["tests"][0]["warning"])
    tested = measured(place, elsewhere / name)
    assert tested.found[0]["warning"] == "" and "95 % intervals" in tested.tables()[0].title


def test_a_store_divided_anew_measures_what_trained_the_run(place, elsewhere):
    shutil.copytree(elsewhere / "copy.zarr", elsewhere / "anew.zarr")
    split(SplitConfig(store=elsewhere / "anew.zarr", seed=3, test=0.6))

    (found,) = measured(place, elsewhere / "anew.zarr").found

    assert "are training images of the run" in found["warning"]


def test_other_images_with_the_same_ids_are_no_training_images(place, tmp_path):
    for name in CLASSES:
        for number in range(12):
            file = tmp_path / f"photos/train/{name}/{number:02d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(name, 500 + number).save(file)
    ids = pyarrow.parquet.read_table(place / "ridge/training_rows.parquet").column("sample_id").to_pylist()
    store = store_of(tmp_path / "photos", tmp_path / "photos.zarr")
    assert set(map(str, open_store(store).table().sample_id)) & set(ids)

    (found,) = measured(place, store, split="all").found

    assert found["warning"] == ""


def test_an_older_run_that_noted_no_rows_asks_its_store(place, elsewhere, tmp_path):
    shutil.copytree(place / "ridge", tmp_path / "ridge")
    (tmp_path / "ridge/training_rows.parquet").unlink()

    (found,) = run(
        EvaluateConfig(run_folder=tmp_path / "ridge", test=(str(elsewhere / "copy.h5"),), split="train")
    ).found

    assert f"{found['rows']} of these {found['rows']} rows are training images" in found["warning"]


def test_rows_in_another_dtype_are_still_the_same_images():
    draw = np.random.default_rng(0)
    features = draw.normal(size=(3, 8)).astype(np.float32)
    known = TrainingRows({"a": "train", "b": "val", "c": "train"}, {"a": features[0], "b": features[1]})

    assert known.overlap(["a", "b"], features[:2] * np.float32(1.003)) == {"train": 1, "val": 1}
    assert known.overlap(["a", "b", "c"], features) == {"train": 2, "val": 1}, "c is not signed: its like decide"
    assert known.overlap(["a", "x"], features[[1, 0]]) == {}
    assert known.overlap(["b", "x"], None) == {"val": 1}
    assert describe_overlap({"val": 2}, 5).startswith("2 of these 5 rows are images that it was chosen on")
