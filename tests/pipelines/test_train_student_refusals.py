"""What `train-student` refuses: plain messages, all problems at once, and nothing is written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import ConfigError, RunError, StoreContentsError, StoreMismatchError, UnknownNameError
from pipelines import train_student
from pipelines.predict import Predictor
from pipelines.train_student import run
from tests.pipelines.online_samples import photos
from tests.pipelines.student_samples import student, teacher


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("refused") / "photos", each=12)


@pytest.fixture(scope="module")
def store(data):
    return teacher(data, data.parent / "teacher.zarr")


@pytest.fixture
def out(tmp_path):
    yield tmp_path / "run"
    assert not (tmp_path / "run").exists()


def refused(config, error=ConfigError) -> str:
    with pytest.raises(error) as found:
        run(config)
    return str(found.value)


class TestTeachers:
    def test_of_a_part_of_the_data_says_how_many_rows_are_missing(self, data, tmp_path, out):
        shutil.copytree(data, tmp_path / "part")
        for name in ("cat/00.png", "dog/03.png", "owl/05.png"):
            (tmp_path / "part" / name).unlink()
        part = teacher(tmp_path / "part", tmp_path / "part.zarr")

        said = refused(student(data, out, part), StoreMismatchError)

        assert f"part.zarr lacks 3 of the 36 samples of {data}, the first is 'cat/00.png'" in said

    def test_of_other_data_with_the_same_ids_is_found_by_its_fingerprint(self, data, tmp_path, out):
        shutil.copytree(data, tmp_path / "other")
        Image.new("RGB", (9, 9)).save(tmp_path / "other/cat/00.png")
        other = teacher(tmp_path / "other", tmp_path / "other.zarr")

        said = refused(student(data, out, other), StoreMismatchError)

        assert "other.zarr is of another data set: it has every sample id of" in said and "fingerprint" in said

    def test_of_more_data_is_another_data_set(self, data, tmp_path, out):
        shutil.copytree(data, tmp_path / "more")
        Image.new("RGB", (9, 9)).save(tmp_path / "more/cat/99.png")
        more = teacher(tmp_path / "more", tmp_path / "more.zarr")

        assert "is of another data set" in refused(student(data, out, more), StoreMismatchError)

    def test_that_skipped_rows_cannot_teach_them(self, data, tmp_path, out):
        shutil.copytree(data, tmp_path / "bad")
        train = next((tmp_path / "bad/cat").iterdir())
        whole = train.read_bytes()
        train.write_bytes(b"\0" * len(whole))
        bad = teacher(tmp_path / "bad", tmp_path / "bad.zarr", on_error="skip")
        train.write_bytes(whole)

        said = refused(student(tmp_path / "bad", out, bad), StoreContentsError)

        assert "bad.zarr cannot teach 1 of the" in said and "1 are not committed or were skipped" in said

    def test_without_the_array_names_those_that_are_there(self, data, store, out):
        said = refused(student(data, out, store, teacher_array="layers/cls/77"), StoreContentsError)

        assert "cannot teach by layers/cls/77: it is not there. There are embedding, layers/cls/05" in said

    def test_that_keep_no_views_cannot_show_them(self, data, store, out):
        said = refused(student(data, out, store, augment="views"))

        assert "teacher.zarr keeps 1 view(s)" in said and "--augment crop" in said


class TestObjectives:
    def test_that_is_not_there_names_the_nearest(self, data, store, out):
        assert "Did you mean 'kernel_kd'?" in refused(
            student(data, out, store, objective="kernel-kds"), UnknownNameError
        )

    def test_none_has_no_prec_and_no_options(self, data, store, out):
        said = refused(student(data, out, store, objective="none", prec=1.0, objective_option={"kernel": "rbf"}))

        assert "prec weighs the distance to the teachers, and objective none has none" in said
        assert "objective none has no options, but kernel was given" in said

    def test_of_teachers_need_one(self, data, out):
        assert "objective b_tuning needs a --teacher STORE" in refused(student(data, out, objective="b-tuning"))

    def test_with_wrong_options_and_steps_say_all_at_once(self, data, store, out):
        changes = {"objective": "aft", "objective_option": {"kernel": "product"}, "accumulate": 2}

        said = refused(student(data, out, store, **changes))

        assert "kernel product multiplies two teachers, and there are 1" in said
        assert "compares all images of a step with each other, so a step cannot be cut" in said

    def test_that_learn_nothing_themselves_cannot_go_on_alone(self, data, store, out):
        said = refused(student(data, out, store, objective="rkd", prior_freq=2))

        assert "prior_freq: objective rkd learns nothing itself" in said

    def test_need_labels(self, data, tmp_path, out):
        (tmp_path / "flat").mkdir()
        for number, path in enumerate(sorted(data.rglob("*.png"))[:6]):
            shutil.copy(path, tmp_path / "flat" / f"{number}.png")
        flat = teacher(tmp_path / "flat", tmp_path / "flat.zarr")

        said = refused(student(tmp_path / "flat", out, flat, objective="b_tuning"))

        assert "holds no labelled training rows, so there is nothing to learn from" in said

    def test_of_no_student_say_what_is_needless(self, data, store, out):
        said = refused(student(data, out, store, objective="concat_probe"))

        for flag in ("--student", "--from-scratch", "--image-size"):
            assert f"{flag} is of a student, and concat_probe has none" in said


class TestReference:
    def test_refuses_what_the_published_code_cannot_do(self, data, store, out):
        said = refused(student(data, out, store, reference=True, augment="crop", optimizer="adamw", steps=1))

        assert "the published code knows no augmentation but for objective none" in said
        assert "the published code knows the optimizers adam and sgd" in said
        assert "1 steps are less than half an epoch of 2" in said


class TestSweeps:
    def test_of_what_is_not_swept_name_the_nearest(self, data, store, out):
        said = refused(
            student(data, out, store, sweep={"precs": "1,2", "teachers": "1,3", "seed": "0,0", "lr": "much"})
        )

        assert "sweep precs: nothing that students are swept over. Did you mean 'prec'?" in said
        assert "sweep teachers=3: teachers are named by their order, 1 to 1" in said
        assert (
            "sweep seed=0,0: a value is there twice" in said and "lr=much: these are not all of the type float" in said
        )

    def test_of_prec_without_teachers_say_nothing(self, data, store, out):
        said = refused(student(data, out, store, objective="none", sweep={"prec": "1,2"}))

        assert "prec is of the teachers, and objective none has none" in said

    def test_that_choose_need_validation_rows(self, data, store, out, monkeypatch):
        whole = train_student.rows_of
        monkeypatch.setattr(train_student, "rows_of", lambda *given: {**whole(*given), "val": np.array([], np.int64)})

        said = refused(student(data, out, store, sweep={"prec": "1,2"}))

        assert "a sweep chooses on validation rows, and" in said and "has none. Give the data a val split" in said


def test_a_probe_predicts_no_images(data, store, tmp_path):
    settings = {"objective": "concat_probe", "student": None, "from_scratch": False, "image_size": None}
    run(student(data, tmp_path / "probe", store, **settings))

    with pytest.raises(RunError, match=r"is a probe on what teachers say .*Train a student of these teachers"):
        Predictor.load(tmp_path / "probe")


def test_another_command_into_the_same_folder_is_refused(data, store, tmp_path):
    run(student(data, tmp_path / "done", store, epochs=0))

    said = refused(student(data, tmp_path / "done", store, epochs=0, prec=3.0), RunError)

    assert "prec: that run has 1.0, this one 3.0" in said
    assert json.loads((tmp_path / "done/record.json").read_text())["objective"]["prec"] == 1.0
