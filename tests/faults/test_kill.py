"""An extraction that is killed, terminated or interrupted keeps what it committed and ends like one that was not."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from featurecache.stores import open_store
from tests.extraction_samples import lasting, pictures
from tests.faults.extent import ALL
from tests.faults.forks import ROOT, Forks, commits, until

ROWS, BATCH = 512, 16
WENT_ON = re.compile(r"going on: kept (\d+) rows, recomputing (\d+)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "animals", cat=200, dog=200, emu=112)


@pytest.fixture(scope="module")
def whole(forks: Forks, folder: Path) -> Path:
    """A store that nothing interrupted."""
    out = folder.parent / "whole.zarr"
    assert forks.wait(forks.start(call(folder, out), folder.parent / "whole.txt")) == 0
    return out


def call(folder: Path, out: Path, *more: str) -> list[str]:
    settings = {
        "backbone": "timm:test_vit", "weights": "random:0", "image-size": 32, "layers": "4-5", "batch-size": BATCH,
        "commit-rows": BATCH, "out": out,
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["extract-features", str(folder), *options, *more]


def committed(store: Path, whole: Path) -> int:
    """Return the rows of a store that is there or not yet there; they must be the beginning of the whole one."""
    if not store.exists():
        return 0
    opened, reference = open_store(store), open_store(whole)
    missing = opened.missing()
    count = missing[0].start if missing else ROWS
    assert missing in ([range(count, ROWS)], [])
    for spec in opened.header.arrays:
        np.testing.assert_array_equal(
            opened.read(spec.name, slice(0, count)), reference.read(spec.name, slice(0, count))
        )
    return count


KILLS = 10 if ALL else 4


def test_kills_at_random_moments_lose_at_most_a_batch_each(forks, folder, whole, tmp_path):
    draw, out, printed = random.Random(0), tmp_path / "x.zarr", tmp_path / "printed.txt"
    ends, told, kept = [], 0, 0

    for attempt in range(KILLS + 1):
        process = forks.start(call(folder, out), printed)
        if attempt < KILLS:
            goal = commits(out) + draw.randint(0, 1)
            until(lambda goal=goal: commits(out) > goal, process)
            time.sleep(draw.uniform(0, 0.05))
            os.kill(process, signal.SIGKILL)
        ends.append(forks.wait(process))
        if found := WENT_ON.search(printed.read_text()):
            told += 1
            assert int(found[1]) == kept
            assert int(found[2]) <= BATCH
        kept = committed(out, whole)

    assert ends == [-signal.SIGKILL] * KILLS + [0]
    assert told >= 0.8 * (KILLS - 1)
    assert lasting(out) == lasting(whole)


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.15])
def test_a_kill_before_the_first_commit_leaves_no_store_or_an_empty_one(forks, folder, whole, tmp_path, moment):
    out = tmp_path / "x.zarr"
    process = forks.start(call(folder, out), tmp_path / "printed.txt")
    time.sleep(moment)
    os.kill(process, signal.SIGKILL)
    forks.wait(process)

    assert committed(out, whole) <= ROWS
    assert forks.wait(forks.start(call(folder, out), tmp_path / "printed.txt")) == 0
    assert lasting(out) == lasting(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["printed.txt", "x.zarr"]


def test_kills_during_an_extension_leave_what_was_there(forks, folder, whole, tmp_path):
    draw, out, printed = random.Random(1), tmp_path / "x.zarr", tmp_path / "printed.txt"
    small = ["--layers", "none"]
    assert forks.wait(forks.start(call(folder, out, *small), printed)) == 0
    embedding = open_store(out).read("embedding", slice(0, ROWS))

    for attempt in range(5):
        process = forks.start(call(folder, out, "--extend"), printed)
        goal = commits(out) + attempt
        until(lambda goal=goal: commits(out) >= goal, process)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(process, signal.SIGKILL)
        assert forks.wait(process) == -signal.SIGKILL
        np.testing.assert_array_equal(open_store(out).read("embedding", slice(0, ROWS)), embedding)

    assert forks.wait(forks.start(call(folder, out, "--extend"), printed)) == 0
    assert lasting(out) == lasting(whole)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_an_interrupt_commits_what_is_complete_and_says_how_to_go_on(forks, folder, whole, tmp_path, sent):
    out, printed = tmp_path / "x.zarr", tmp_path / "printed.txt"
    process = forks.start(call(folder, out, "--commit-rows", str(ROWS)), printed)
    chunk, batch = out / "embedding/c/0/0/0", BATCH * open_store(whole).header.array("embedding").row_bytes
    until(lambda: chunk.exists() and any(chunk.read_bytes()[batch:]), process)  # one batch is complete, the next begun
    os.kill(process, sent)

    assert forks.wait(process) == 75
    assert "the same command goes on where it stopped" in printed.read_text()
    kept = committed(out, whole)
    assert 0 < kept < ROWS
    assert kept % BATCH == 0
    assert forks.wait(forks.start(call(folder, out), printed)) == 0
    assert f"went on: kept {kept} rows, recomputed" in printed.read_text()
    assert lasting(out) == lasting(whole)


def test_two_writers_at_once_are_one_writer_and_one_refusal(forks, folder, tmp_path):
    out, first_said, second_said = tmp_path / "x.zarr", tmp_path / "first.txt", tmp_path / "second.txt"
    first = forks.start(call(folder, out), first_said)
    until(lambda: commits(out) > 1, first)
    os.kill(first, signal.SIGSTOP)  # so that it cannot be done before the second one looks
    try:
        refused = forks.wait(forks.start(call(folder, out), second_said))
    finally:
        os.kill(first, signal.SIGCONT)

    assert refused == 1
    assert re.search(rf"is being written by process {first} on \S+, for \d+ s\. Wait for it", second_said.read_text())
    assert forks.wait(first) == 0


def test_the_true_command_line_goes_on_after_a_kill(forks, folder, whole, tmp_path):
    out = tmp_path / "x.zarr"
    command = [sys.executable, "-c", "import cli; cli.main()", *call(folder, out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = forks.start(call(folder, out), tmp_path / "printed.txt")
    until(lambda: commits(out) > 10, first)
    os.kill(first, signal.SIGKILL)
    ended = forks.wait(first)
    kept = committed(out, whole)

    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)

    assert ended == -signal.SIGKILL
    assert kept >= 9 * BATCH
    assert int(WENT_ON.search(again.stderr)[1]) == kept
    assert f"went on: kept {kept} rows" in again.stdout
    assert lasting(out) == lasting(whole)
