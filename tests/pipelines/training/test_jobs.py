"""Cells at the same time: each once, in a process of its own; what stops one stops all, and nothing of them lives on."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurecache.errors import ConfigError, DivergedError, WorkerError
from pipelines.training.jobs import done


def note(place: Path) -> None:
    """Say which process came here, and with how many threads."""
    import torch

    place.write_text(f"{os.getpid()} {torch.get_num_threads()}")


def meet(place: Path) -> None:
    """Come here, and wait until there are two."""
    place.touch()
    until = time.monotonic() + 60
    while len(list(place.parent.iterdir())) < 2:
        assert time.monotonic() < until, "nobody else came"
        time.sleep(0.01)


def fail_or_sleep(place: Path) -> None:
    """Fail where the name says so, with an error of ours; sleep far longer than a test may last where it does not."""
    if place.name == "fails":
        raise DivergedError("the loss ceased to be a number")
    time.sleep(600)


def die(place: Path) -> None:
    """End the process as a kill would."""
    os._exit(3)


def test_one_job_is_this_process_and_keeps_the_order(tmp_path):
    places = [tmp_path / name for name in "cab"]

    assert list(done(note, places, 1)) == places
    assert {place.read_text().split()[0] for place in places} == {str(os.getpid())}


def test_several_jobs_are_at_it_at_once_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.training.jobs.cores", lambda: 6)

    assert set(done(meet, [tmp_path / "a", tmp_path / "b"], 2)) == {tmp_path / "a", tmp_path / "b"}

    places = [tmp_path / str(number) for number in range(3)]
    assert set(done(note, places, 2)) == set(places)
    told = [place.read_text().split() for place in places]
    assert str(os.getpid()) not in {process for process, _ in told} and {threads for _, threads in told} == {"3"}
    assert multiprocessing.active_children() == []


def test_what_one_raises_is_raised_here_and_the_others_are_stopped(tmp_path):
    start = time.monotonic()

    with pytest.raises(DivergedError, match="ceased to be a number"):
        list(done(fail_or_sleep, [tmp_path / "sleeps", tmp_path / "fails", tmp_path / "waits"], 2))

    assert time.monotonic() - start < 120
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_is_told_with_how_and_the_way_out(tmp_path):
    with pytest.raises(WorkerError, match=r"a process that trains ended with exit code 3\. .* fewer --jobs"):
        list(done(die, [tmp_path / "a", tmp_path / "b"], 2))


def test_a_script_that_guards_nothing_is_told_to(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom pipelines.training.jobs import done\nprint(list(done(os.fspath, ['a', 'b', 'c'], 2)))\n"
    )

    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=Path(__file__).parents[3])

    assert ended.returncode == 1
    assert "WorkerError: a process that trains ended with exit code 1" in ended.stderr.splitlines()[-1]
    assert 'must do so below if __name__ == "__main__".' in ended.stderr.splitlines()[-1]


def test_jobs_and_torchrun_are_not_both_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(ConfigError, match="several jobs and torchrun"):
        list(done(note, [tmp_path / "a", tmp_path / "b"], 2))
