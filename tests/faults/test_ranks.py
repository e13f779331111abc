"""Several processes train as one: what torchrun starts gives what one process gives, and goes on after a kill."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from featurecache.datasets import open_dataset
from tests.faults.forks import Forks, until
from tests.pipelines.online_samples import photos, words

SETTINGS = {"peft": "full", "head": "lfa", "backbone_lr": 1e-3, "epochs": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return photos(tmp_path_factory.mktemp("ranks") / "photos", each=14)


def uneven(data: Path) -> int:
    """Return a batch size that leaves one row for the last step of an epoch: nothing for the second process."""
    count = sum(split == "train" for split in open_dataset(data).table.split)
    return next(size for size in range(6, count) if count % size == 1)


def started(forks: Forks, arguments: list[str], place: Path, count: int = 2) -> list[int]:
    """Start one process for each rank, with what torchrun says to them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        forks.start(
            arguments, place / f"rank{rank}.txt", always=True,
            environment={**shared, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in range(count)
    ]  # fmt: skip


def test_two_processes_train_what_one_trains(forks, data, tmp_path):
    size = uneven(data)
    # adamw divides by the size of the gradient: of a value without one, such as a key's bias, it makes steps of noise
    rule = {"optimizer": "sgd", "lr": 0.01, "backbone_lr": 0.01}
    settings = {**SETTINGS, **rule, "batch_size": 2 * size, "accumulate": 2, "augment": "timm"}

    assert forks.wait(forks.start(words(data, tmp_path / "one", **settings), tmp_path / "one.txt")) == 0
    ends = [forks.wait(one) for one in started(forks, words(data, tmp_path / "two", **settings), tmp_path)]

    assert ends == [0, 0], (tmp_path / "rank0.txt").read_text() + (tmp_path / "rank1.txt").read_text()
    for file in ("backbone.safetensors", "head.safetensors"):
        one, two = (load_file(tmp_path / run / file) for run in ("one", "two"))
        for key, values in one.items():
            np.testing.assert_allclose(two[key], values, rtol=1e-5, atol=1e-5, err_msg=key)
    one, two = (pq.read_table(tmp_path / run / "predictions.parquet").to_pydict() for run in ("one", "two"))
    assert one["sample_id"] == two["sample_id"]
    np.testing.assert_allclose(two["prob_cat"], one["prob_cat"], atol=1e-5)
    assert "best at epoch" in (tmp_path / "rank0.txt").read_text()
    assert "best at epoch" not in (tmp_path / "rank1.txt").read_text(), "one of them speaks"


def test_two_processes_with_numbers_of_their_own_go_on_after_a_kill_to_the_same_bits(forks, data, tmp_path):
    settings = {**SETTINGS, "batch_size": uneven(data), "drop_path": 0.3, "head_option": "dropout=0.3"}
    command = words(data, tmp_path / "killed", **settings)
    assert [forks.wait(p) for p in started(forks, words(data, tmp_path / "whole", **settings), tmp_path)] == [0, 0]

    processes = started(forks, command, tmp_path)
    until(lambda: (tmp_path / "killed/checkpoint.pt").exists(), processes[0])
    for process in processes:
        os.kill(process, signal.SIGKILL)
        assert forks.wait(process) == -signal.SIGKILL
    assert [forks.wait(p) for p in started(forks, command, tmp_path)] == [0, 0]

    assert "going on with epoch" in (tmp_path / "rank0.txt").read_text()
    for file in ("backbone.safetensors", "head.safetensors", "history.jsonl"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_what_the_first_process_refuses_all_refuse(forks, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/other.txt").write_text("something else")

    ends = [forks.wait(one) for one in started(forks, words(data, tmp_path / "run", **SETTINGS), tmp_path)]

    assert ends == [1, 1]
    for rank in range(2):
        assert "is a folder with other files in it" in (tmp_path / f"rank{rank}.txt").read_text()
