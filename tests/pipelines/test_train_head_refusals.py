"""What train-head refuses: before anything is written, all problems of a command at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.errors import ConfigError, StoreContentsError, StoreNotFoundError, UnknownNameError
from pipelines.train_head import run
from tests.pipelines.stores import made_store
from tests.pipelines.test_train_head import config


def refused(store: Path, out: Path, error: type[Exception], match: str, **settings: Any) -> None:
    with pytest.raises(error, match=match):
        run(config(store, out, **settings))
    assert not out.exists(), "a run that is refused leaves nothing behind"


def test_a_store_without_labels_is_refused(tmp_path):
    store = made_store(tmp_path / "x.zarr", targets=np.full(120, -1), split=[""] * 120, class_names=())

    refused(store, tmp_path / "run", ConfigError, "holds no labelled training rows, so there is nothing to learn from")


def test_one_class_only_is_refused(tmp_path):
    store = made_store(tmp_path / "x.zarr", targets=np.zeros(120, np.int64))

    refused(store, tmp_path / "run", ConfigError, "are of one class, so there is nothing to tell apart")


def test_everything_that_is_wrong_with_a_command_is_told_together(tmp_path):
    store = made_store(tmp_path / "x.zarr", "regression", targets=np.full((120, 3), np.nan, np.float32))
    settings = {
        "head_option": {"widht": 3, "start": "x"},
        "class_weights": "balanced",
        "label_smoothing": 0.1,
        "head": "lfa",
    }

    with pytest.raises(ConfigError) as error:
        run(config(store, tmp_path / "run", **settings))

    assert [problem.split()[0] for problem in error.value.problems] == [
        str(store), "head", "start", "class_weights", "label_smoothing"
    ]  # fmt: skip
    assert "Did you mean 'width'?" in str(error.value)


def test_a_mistyped_option_does_not_take_the_folder(tmp_path):
    store = made_store(tmp_path / "x.zarr")
    refused(store, tmp_path / "run", ConfigError, "has no option 'bais'", head_option={"bais": False})

    assert not run(config(store, tmp_path / "run", head_option={"bias": False})).repeated


@pytest.mark.parametrize(("settings", "error", "match"), [
    ({"head": "lienar"}, UnknownNameError, "no head called 'lienar'. Did you mean 'linear'"),
    ({"layers": "7"}, StoreContentsError, "layers that the store does not hold; it holds 0, 1"),
    ({"tokens": "register"}, StoreContentsError, "holds no tokens 'register'; it holds cls, mean"),
    ({"layers": "mean"}, ConfigError, "layers of different widths have no mean .* Give --layers concat"),
    ({"head": "lfa", "layers": "mean"}, ConfigError, "lfa reads every layer by itself"),
    ({"head": "zero_shot"}, StoreContentsError, "the store holds no array projected, the joint space"),
    ({"head": "lfa_clip"}, StoreContentsError, "the head lfa_clip needs text/eot, .* It is for models with a text side"),
    ({"head": "ridge", "head_option": {"lambdas": [0.0]}}, ConfigError, "lambdas must be positive"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, settings, error, match):
    refused(made_store(tmp_path / "x.zarr"), tmp_path / "run", error, match, **settings)


def test_a_store_that_is_not_finished_is_refused(tmp_path):
    store = made_store(tmp_path / "x.zarr", stop_at=64)

    refused(store, tmp_path / "run", StoreContentsError, "is not finished: 56 of 120 rows are not committed")


def test_no_store_is_refused(tmp_path):
    refused(tmp_path / "x.zarr", tmp_path / "run", StoreNotFoundError, "does not exist")


def test_a_store_of_embeddings_alone_is_enough(tmp_path):
    store = made_store(tmp_path / "x.zarr", arrays=("embedding",))

    assert run(config(store, tmp_path / "run")).record["arrays"] == ["embedding"]
    refused(store, tmp_path / "other", StoreContentsError, "no layers. Give --layers embedding", head="lfa")


def test_every_setting_out_of_range_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        config(
            tmp_path, tmp_path, epochs=-1, lr=0.0, weight_decay=-1.0, batch_size=0, momentum=1.0, label_smoothing=1.0,
            least_lr=-1.0, nesterov=True, clip_norm=0.0,
        )  # fmt: skip

    assert [problem.split()[0] for problem in error.value.problems] == [
        "lr", "weight_decay", "momentum", "least_lr", "nesterov", "clip_norm", "label_smoothing", "epochs", "batch_size"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="lr must be positive and finite, got inf"):
        config(tmp_path, tmp_path, lr=float("inf"))
