"""Where the images and the stores of a run are, is recorded so that it is found from any folder; an older record of the same place is it too."""

from __future__ import annotations

import json
import shutil

import pytest

from featurecache.errors import RunError
from featurecache.places import placed
from pipelines.run_protocol import RunProtocolConfig
from pipelines.run_protocol import run as run_protocol
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train_head
from pipelines.train_online import run
from pipelines.train_student import TrainStudentConfig
from pipelines.train_student import run as train_student
from save_features import SaveFeaturesConfig
from save_features import run as extract
from tests.pipelines.online_samples import online, photos


def of_student(data, out):
    return TrainStudentConfig(
        data=data, out=out, student="timm:test_resnet", from_scratch=True, image_size=32, objective="none", epochs=0, quiet=True
    )  # fmt: skip


@pytest.mark.parametrize("train", [
    lambda data, out: run(online(data, out, epochs=0)), lambda data, out: train_student(of_student(data, out)),
], ids=["online", "student"])  # fmt: skip
def test_images_named_from_here_are_found_from_elsewhere(train, tmp_path, monkeypatch):
    data, out = photos(tmp_path / "photos", each=4), tmp_path / "run"
    monkeypatch.chdir(tmp_path)

    first = train("photos", out)
    found = json.loads((out / "config.json").read_text())["data"]

    assert not first.repeated and found == str(data.resolve())
    assert train(str(data), out).repeated
    (out / "config.json").write_text((out / "config.json").read_text().replace(json.dumps(found), '"photos"'))
    for same in ("photos", "./photos", str(data)):
        assert train(same, out).repeated
    shutil.copytree(data, tmp_path / "others")
    assert train("others", out).repeated  # the same pictures under another name
    next((tmp_path / "others").rglob("*.png")).unlink()
    with pytest.raises(RunError, match="fingerprint: that run has"):
        train("others", out)


def head(store, out):
    return train_head(TrainHeadConfig(store=placed(store), out=out, head="linear", epochs=1, quiet=True))


def student(store, out):
    config = TrainStudentConfig(
        data="photos", out=out, student="timm:test_resnet", from_scratch=True, image_size=32, teacher=(placed(store),),
        epochs=0, quiet=True,
    )  # fmt: skip
    return train_student(config)


def protocol(store, out):
    return run_protocol(
        RunProtocolConfig(protocol="holdout", stores=(placed(store),), out=out, heads=("ridge",), quiet=True)
    )


@pytest.mark.parametrize(("act", "name"), [(head, "store"), (student, "teacher"), (protocol, "stores")])
def test_stores_named_from_here_are_found_from_elsewhere(act, name, tmp_path, monkeypatch):
    data, out = photos(tmp_path / "photos", each=12), tmp_path / "run"
    store = tmp_path / "photos.zarr"
    extract(SaveFeaturesConfig(data=str(data), backbone="demo", out=store, quiet=True))
    monkeypatch.chdir(tmp_path)

    act("photos.zarr", out)
    found = json.loads((out / "config.json").read_text())[name]

    assert found in (str(store.resolve()), [str(store.resolve())])
    assert act(str(store), out).repeated
    (out / "config.json").write_text((out / "config.json").read_text().replace(json.dumps(str(store)), '"photos.zarr"'))
    for same in ("photos.zarr", "./photos.zarr", str(store)):
        assert act(same, out).repeated
    shutil.copytree(store, tmp_path / "others.zarr")
    with pytest.raises(RunError, match="that run has .*photos.zarr.*, this one .*others"):
        act("others.zarr", out)
