"""Images through backbone and head: the answers are those of the stored rows, and another backbone is refused."""

from __future__ import annotations

import csv
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from featurecache.backbones import demo
from featurecache.errors import DatasetNotFoundError, FeatureCacheError, RunError, UnreadableSampleError
from featurecache.stores import open_store
from pipelines.predict import PredictConfig, Predictor, run
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from save_features import SaveFeaturesConfig
from save_features import run as extract

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with coloured pictures, a weights file, a store of their features and a run trained on it."""
    place, generator = tmp_path_factory.mktemp("predict"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for channel, name in enumerate(reversed(CLASSES)):
            folder = place / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 90, (32, 32, 3))
                pixels[..., channel] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    shutil.copy(demo.WEIGHTS, place / "weights.safetensors")
    extract(
        SaveFeaturesConfig(
            data=str(place / "photos"), backbone="demo", weights=str(place / "weights.safetensors"),
            tokens="cls+mean", out=place / "store.zarr", quiet=True,
        )
    )  # fmt: skip
    train(
        TrainHeadConfig(store=place / "store.zarr", head="ridge", layers="concat", tokens="cls+mean", out=place / "run")
    )
    return place


@pytest.fixture
def predictor(place: Path) -> Predictor:
    return Predictor.load(place / "run")


def test_answers_equal_those_of_the_stored_rows(place, predictor):
    stored = pyarrow.parquet.read_table(place / "run/predictions.parquet").to_pylist()
    paths = [place / "photos" / row["sample_id"] for row in stored]

    found = predictor.predict(paths)

    assert [prediction.answer for prediction in found] == [row["pred"] for row in stored]
    for prediction, row in zip(found, stored, strict=True):
        assert dict(prediction.top) == pytest.approx({name: row[f"prob_{name}"] for name in CLASSES}, abs=1e-3)


def test_pictures_files_and_folders_are_answered_in_the_order_given(place, predictor):
    red, folder = place / "photos/test/red/0.png", place / "photos/test/blue"

    found = predictor.predict([Image.open(red), folder, str(red)], topk=1)

    names = [str(folder / f"{number}.png") for number in range(4)]
    assert [prediction.image for prediction in found] == ["image 0", *names, str(red)]
    assert [prediction.answer for prediction in found] == ["red", *["blue"] * 4, "red"]
    assert all(len(prediction.top) == 1 for prediction in found)


def test_an_archive_is_answered_member_by_member(place, predictor, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "test"), "zip", place / "photos/test")

    found = predictor.predict([archive])

    assert [prediction.answer for prediction in found] == [name for name in CLASSES for _ in range(4)]


def test_topk_is_sorted_and_no_longer_than_the_classes(place, predictor):
    (found,) = predictor.predict([place / "photos/test/green/1.png"], topk=10)

    assert found.top[0][0] == "green"
    assert [value for _, value in found.top] == sorted((value for _, value in found.top), reverse=True)
    assert sum(value for _, value in found.top) == pytest.approx(1, abs=1e-5)


def test_a_bad_image_stops_or_is_left_without_an_answer(place, predictor, tmp_path):
    bad, good = tmp_path / "bad.png", place / "photos/test/red/0.png"
    bad.write_bytes(good.read_bytes()[:60])

    with pytest.raises(UnreadableSampleError, match=r"bad\.png"):
        predictor.predict([good, bad])
    found = predictor.predict([bad, good], on_error="skip")

    assert found[0].answer is None and found[0].problem
    assert found[1].answer == "red"


def test_paths_that_are_not_there_are_named_together(place, predictor):
    with pytest.raises(DatasetNotFoundError, match=r"(?s)no1\.png.*no2\.png"):
        predictor.predict([place / "no1.png", place / "no2.png"])


def test_the_verb_writes_one_line_an_image(place, tmp_path):
    out = tmp_path / "new" / "answers.csv"

    report = run(PredictConfig(run_folder=place / "run", inputs=(place / "photos/test",), out=out, topk=2))

    with open(out) as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(report.found) == 12
    assert list(lines[0]) == ["image", "answer", "problem", "class1", "prob1", "class2", "prob2"]
    assert all(line["answer"] == line["class1"] == Path(line["image"]).parent.name for line in lines)


def test_weights_that_moved_are_asked_for_and_others_refused(place, tmp_path):
    moved = tmp_path / "moved.safetensors"
    shutil.move(place / "weights.safetensors", moved)
    other = {name: value + 1e-3 for name, value in load_file(moved).items()}
    save_file(other, tmp_path / "other.safetensors")

    try:
        with pytest.raises(FeatureCacheError, match="--weights"):
            Predictor.load(place / "run")
        with pytest.raises(RunError, match="weights: the run has"):
            Predictor.load(place / "run", weights=str(tmp_path / "other.safetensors"))
        again = Predictor.load(place / "run", weights=str(moved))
        assert again.predict([place / "photos/test/red/0.png"])[0].answer == "red"
    finally:
        shutil.move(moved, place / "weights.safetensors")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        Predictor.load(tmp_path)


def test_probabilities_are_those_of_the_answers_in_the_order_of_the_classes(place, predictor):
    paths = [place / f"photos/test/{name}/2.png" for name in CLASSES]

    found = predictor.predict_proba(paths, batch_size=2)

    assert found.shape == (3, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    for row, prediction in zip(found, predictor.predict(paths), strict=True):
        assert dict(zip(predictor.class_names, row.tolist(), strict=True)) == pytest.approx(
            dict(prediction.top), abs=1e-5
        )


def test_vectors_are_the_pooled_ones_and_features_what_the_head_reads(place, predictor):
    store = open_store(place / "store.zarr")
    ids = list(np.asarray(store.table().sample_id)[:5])
    paths = [place / "photos" / name for name in ids]

    vectors, features = predictor.embed(paths), predictor.features(paths)

    np.testing.assert_allclose(vectors, store.read("embedding", np.arange(5)), atol=1e-2, rtol=1e-2)
    assert set(features) == {spec.name for spec in predictor.arrays} and len(features) == 12
    for name, values in features.items():
        np.testing.assert_allclose(values, store.read(name, np.arange(5)).astype(np.float32), atol=1e-2, rtol=1e-2)


def test_one_picture_needs_no_list_and_unreadable_ones_are_not_a_number(place, predictor, tmp_path):
    bad, good = tmp_path / "bad.png", place / "photos/test/red/0.png"
    bad.write_bytes(b"no picture")

    alone = predictor.predict_proba(str(good))
    found = predictor.predict_proba([bad, good], on_error="skip")

    assert np.isnan(found[0]).all() and np.isnan(predictor.embed([bad, good], on_error="skip")[0]).all()
    np.testing.assert_allclose(found[1], alone[0], atol=1e-5)
    assert predictor.predict(Image.open(good))[0].answer == "red"


def test_of_an_unreadable_picture_it_speaks_of_predicting_and_not_of_a_store(place, predictor, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")

    with pytest.raises(UnreadableSampleError) as refused:
        predictor.predict([place / "photos/train/red/0.png", tmp_path / "broken.jpg"])

    said = str(refused.value)
    assert "broken.jpg" in said and "--on-error skip: nothing is predicted for it, and all other images are" in said
    assert "row" not in said
    assert str(pickle.loads(pickle.dumps(refused.value))) == said


def test_of_a_folder_what_is_left_out_is_named_and_nothing_is_said_of_splits(place, predictor, tmp_path, caplog):
    folder = tmp_path / "mixed"
    for part in ("train", "val"):
        shutil.copytree(place / "photos/train/red", folder / part / "red")
    shutil.copy(folder / "val/red/0.png", folder / "loose.png")
    (folder / "notes.txt").write_text("no picture")

    with caplog.at_level("INFO", "featurecache"):
        found = predictor.predict(folder)

    assert len(found) == 25
    (said,) = caplog.messages
    assert "left out" in said and "notes.txt" in said


def test_arrays_and_tensors_get_the_answers_of_their_files(place):
    predictor = Predictor.load(place / "run")
    paths = sorted((place / "photos/test/red").glob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    channels_first = torch.from_numpy(pixels).movedim(-1, 1)

    of_files = predictor.predict_proba(paths)

    for given in (pixels, channels_first, channels_first / 255, [pixels[0], *channels_first[1:]]):
        np.testing.assert_array_equal(predictor.predict_proba(given), of_files)
    assert [said.answer for said in predictor.predict(pixels)] == ["red"] * len(paths)
    assert predictor.embed(pixels[0]).shape == (1, predictor.backbone.dim)


def test_a_predictor_displays_what_it_is_made_of(place):
    predictor = Predictor.load(place / "run")
    predictor.class_names[0] = "<b>blue</b>"

    assert repr(predictor) == "<Predictor: demo, head Ridge on 12 arrays, 3 classes>"
    assert "&lt;b&gt;blue" in predictor._repr_html_() and "<b>blue" not in predictor._repr_html_()
