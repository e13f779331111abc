"""Threads of what is trained and asked: one for few rows, what was asked for otherwise, and the caller's afterwards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from featurecache import threads
from pipelines import estimator, rank, train_online
from pipelines.estimator import HeadClassifier
from pipelines.rank import RankConfig
from pipelines.run_protocol import RunProtocolConfig
from pipelines.run_protocol import run as run_protocol
from pipelines.train_head import TrainHeadConfig, run
from pipelines.training import training
from tests.pipelines.online_samples import online, photos
from tests.pipelines.stores import made_store


@pytest.fixture(autouse=True)
def caller(monkeypatch):
    """A caller whose torch has two threads, in a process that nobody told a number."""
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 2, "the caller's threads are changed for good"


def seen_by(monkeypatch, module, name):
    """Return a list of torch's threads in every call of a function of a module."""
    real, seen = getattr(module, name), []

    def watched(*given, **named):
        seen.append(torch.get_num_threads())
        return real(*given, **named)

    monkeypatch.setattr(module, name, watched)
    return seen


def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.standard_normal((count, 8), dtype=np.float32), np.arange(count) % 2


@pytest.mark.parametrize("head", ["linear", "ridge"])
def test_a_small_store_is_trained_by_one_thread_and_the_record_says_so(tmp_path, monkeypatch, head):
    seen = seen_by(monkeypatch, training, "fit")

    found = run(
        TrainHeadConfig(store=made_store(tmp_path / "x.zarr"), out=tmp_path / "run", head=head, epochs=1, quiet=True)
    )

    assert seen == [1]
    assert found.record["environment"]["threads"] == 1


def test_threads_are_recorded_and_make_no_other_run(tmp_path, monkeypatch):
    seen, config = seen_by(monkeypatch, training, "fit"), {"store": made_store(tmp_path / "x.zarr"), "quiet": True}

    first = run(TrainHeadConfig(**config, out=tmp_path / "run", threads=2, head="ridge"))
    again = run(TrainHeadConfig(**config, out=tmp_path / "run", threads=1, head="ridge"))

    assert seen == [2]
    assert first.record["environment"]["threads"] == 2
    assert again.repeated
    assert "threads" not in json.loads((tmp_path / "run" / "config.json").read_text())


def test_trials_of_a_protocol_compute_with_one_thread(tmp_path, monkeypatch):
    seen = seen_by(monkeypatch, training, "fit")

    run_protocol(
        RunProtocolConfig(
            protocol="holdout?seed=1,2", stores=(made_store(tmp_path / "x.zarr"),), heads=("ridge",), out=tmp_path / "p",
            quiet=True,
        )
    )  # fmt: skip

    assert set(seen) == {1}


def test_the_estimator_takes_one_thread_for_few_rows_and_all_for_large_steps_on_many(monkeypatch):
    seen = seen_by(monkeypatch, estimator, "fit")
    monkeypatch.setattr(threads, "FEW_ROWS", 50)

    HeadClassifier("ridge").fit(*rows(40)).predict(rows(40)[0])
    HeadClassifier("ridge").fit(*rows(60)).predict(rows(60)[0])

    assert seen == [1, 2]


def test_scores_that_are_asked_for_with_threads_are_computed_with_them(tmp_path, monkeypatch):
    seen = seen_by(monkeypatch, rank, "scores_of")

    rank.run(RankConfig(stores=(made_store(tmp_path / "x.zarr"),), threads=1))

    assert seen == [1]


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_few_images_that_a_model_looks_at_are_no_small_work(tmp_path, monkeypatch, peft):
    seen = seen_by(monkeypatch, train_online, "outputs_of")

    train_online.run(online(photos(tmp_path / "photos"), tmp_path / "run", epochs=1, peft=peft))

    assert set(seen) == {2}
