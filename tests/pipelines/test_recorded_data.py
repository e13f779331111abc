"""Where the images of a run are, is recorded so that it is found from any folder; an older record of the same place is it too."""

from __future__ import annotations

import json
import shutil

import pytest

from featurecache.errors import RunError
from pipelines.train_online import run
from pipelines.train_student import TrainStudentConfig
from pipelines.train_student import run as train_student
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
    with pytest.raises(RunError, match="data: that run has 'photos', this one .*others"):
        train("others", out)
