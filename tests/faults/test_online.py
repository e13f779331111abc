"""An online training that is killed or stopped goes on to the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.forks import Forks, until
from tests.pipelines.online_samples import photos, words

KEPT = ("backbone.safetensors", "head.safetensors", "history.jsonl", "predictions.parquet")
CHECKPOINT = "checkpoint.pt"
SETTINGS = {
    "peft": "full", "head": "lfa", "head_option": "dropout=0.2", "drop_path": 0.2, "augment": "timm",
    "backbone_lr": 1e-3, "accumulate": 2, "epochs": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return photos(tmp_path_factory.mktemp("killed") / "photos", each=14)


@pytest.fixture(scope="module")
def whole(forks: Forks, data: Path) -> Path:
    """A run that nothing interrupted."""
    out = data.parent / "whole"
    assert forks.wait(forks.start(words(data, out, **SETTINGS), data.parent / "whole.txt", always=True)) == 0
    return out


def kept(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in KEPT}


def states(run: Path) -> int:
    """Return a number that changes with every checkpoint that is written."""
    path = run / CHECKPOINT
    return path.stat().st_ino if path.exists() else 0


def test_three_kills_and_the_same_weights(forks, data, whole, tmp_path):
    out, printed, ends = tmp_path / "run", tmp_path / "printed.txt", []

    for _ in range(3):
        process = forks.start(words(data, out, **SETTINGS), printed, always=True)
        until(lambda: states(out) > 0, process)
        before = states(out)
        until(lambda before=before: states(out) != before, process)  # of this process
        os.kill(process, signal.SIGKILL)
        ends.append(forks.wait(process))
    assert ends == [-signal.SIGKILL] * 3 and not (out / "record.json").exists()
    ends = forks.wait(forks.start(words(data, out, **SETTINGS), printed, always=True))

    assert ends == 0, printed.read_text()
    assert "going on with epoch" in printed.read_text()
    assert kept(out) == kept(whole)
    assert not (out / CHECKPOINT).exists()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_an_interrupt_ends_with_75_and_the_run_goes_on(forks, data, whole, tmp_path, sent):
    out, printed = tmp_path / "run", tmp_path / "printed.txt"
    process = forks.start(words(data, out, **SETTINGS), printed, always=True)
    until(lambda: states(out) > 0, process)

    os.kill(process, sent)

    assert forks.wait(process) == 75
    assert "the same command goes on where it stopped" in printed.read_text()
    assert forks.wait(forks.start(words(data, out, **SETTINGS), printed, always=True)) == 0
    assert kept(out) == kept(whole)


def test_a_damaged_checkpoint_is_named_with_the_way_out(forks, data, tmp_path):
    out, printed = tmp_path / "run", tmp_path / "printed.txt"
    process = forks.start(words(data, out, **SETTINGS), printed, always=True)
    until(lambda: states(out) > 0, process)
    os.kill(process, signal.SIGKILL)
    forks.wait(process)
    path = out / CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])

    assert forks.wait(forks.start(words(data, out, **SETTINGS), printed, always=True)) == 1
    assert "holds no training that can be gone on with" in printed.read_text()
    assert path.exists()
