"""What a student's options are called, where something below them is refused."""

from __future__ import annotations

import pytest

from featurecache.errors import WeightsError
from pipelines.train_student import TrainStudentConfig, run
from tests.pipelines.online_samples import photos


def test_weights_that_are_not_there_are_named_as_the_verb_names_them(tmp_path):
    data = photos(tmp_path / "photos", each=4)
    config = TrainStudentConfig(
        data=str(data), out=tmp_path / "run", student="timm:test_resnet", student_weights="gone.pth", objective="none",
        image_size=32, quiet=True,
    )  # fmt: skip

    with pytest.raises(WeightsError, match="gone.pth. Give --student-weights FILE, or --from-scratch"):
        run(config)

    assert not (tmp_path / "run").exists()
