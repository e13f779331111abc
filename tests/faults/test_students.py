"""A student's training that is killed goes on to the same bits; two processes compare the rows of both with each other."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.faults.forks import Forks, until
from tests.faults.test_ranks import started, uneven
from tests.pipelines.online_samples import photos
from tests.pipelines.student_samples import teacher, words

KEPT = ("backbone.safetensors", "head.safetensors", "objective.safetensors", "history.jsonl", "predictions.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return photos(tmp_path_factory.mktemp("students") / "photos", each=14)


@pytest.fixture(scope="module")
def store(data: Path) -> Path:
    return teacher(data, data.parent / "teacher.zarr")


@pytest.mark.parametrize("student", ["timm:test_vit", "timm:test_efficientnet"])
def test_two_kills_and_the_same_weights(forks: Forks, data, store, tmp_path, student):
    settings = {"objective": "aft", "epochs": 4, "prior_freq": 2, "student": student}
    whole, out, printed = tmp_path / "whole", tmp_path / "run", tmp_path / "printed.txt"
    assert forks.wait(forks.start(words(data, whole, store, **settings), printed, always=True)) == 0

    for _ in range(2):
        process = forks.start(words(data, out, store, **settings), printed, always=True)
        until(lambda: (out / "checkpoint.pt").exists(), process)
        before = (out / "checkpoint.pt").stat().st_ino
        until(lambda before=before: (out / "checkpoint.pt").stat().st_ino != before, process)
        os.kill(process, signal.SIGKILL)
        assert forks.wait(process) == -signal.SIGKILL
    assert not (out / "record.json").exists()
    assert forks.wait(forks.start(words(data, out, store, **settings), printed, always=True)) == 0

    assert "going on with epoch" in printed.read_text()
    assert {name: (out / name).read_bytes() for name in KEPT} == {name: (whole / name).read_bytes() for name in KEPT}


def test_two_processes_train_what_one_trains(forks: Forks, data, store, tmp_path):
    settings = {"objective": "aft", "optimizer": "sgd", "lr": 0.05, "batch_size": uneven(data), "prec": 2.0}
    assert forks.wait(forks.start(words(data, tmp_path / "one", store, **settings), tmp_path / "one.txt")) == 0

    ends = [forks.wait(one) for one in started(forks, words(data, tmp_path / "two", store, **settings), tmp_path)]

    assert ends == [0, 0], (tmp_path / "rank0.txt").read_text() + (tmp_path / "rank1.txt").read_text()
    for file in ("backbone.safetensors", "head.safetensors", "objective.safetensors"):
        one, two = (load_file(tmp_path / run / file) for run in ("one", "two"))
        for key, values in one.items():
            np.testing.assert_allclose(two[key], values, rtol=1e-5, atol=1e-5, err_msg=key)
    assert float(load_file(tmp_path / "one/objective.safetensors")["s"].abs().max()) > 1e-4, "the scales moved at all"
