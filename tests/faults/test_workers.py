"""An extraction with worker processes ends like one without, however it or a worker is ended, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.extraction_samples import lasting, pictures
from tests.faults.forks import Forks, commits, until
from tests.faults.test_kill import call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "animals", cat=300, dog=300)


@pytest.fixture(scope="module")
def whole(forks: Forks, folder: Path) -> Path:
    """A store that threads decoded for, uninterrupted."""
    out = folder.parent / "whole.zarr"
    assert forks.wait(forks.start(call(folder, out), folder.parent / "whole.txt")) == 0
    return out


def children(process: int) -> list[int]:
    """Return the processes that one has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = stat.parent.name, stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended while we looked
            continue
        if int(rest[1]) == process:
            found.append(int(number))
    return found


def workers(process: int) -> list[int]:
    """Return its worker processes, without the tracker of resources that Python starts beside them."""
    return [p for p in children(process) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("sent", ["SIGKILL to a worker", "SIGTERM", "SIGKILL"])
def test_whatever_ends_it_the_same_command_goes_on(forks, folder, whole, tmp_path, sent):
    out, printed = tmp_path / "x.zarr", tmp_path / "printed.txt"
    process = forks.start(call(folder, out, "--workers", "1"), printed)
    until(lambda: commits(out) > 2, process)
    started = children(process)
    target = workers(process)[0] if sent.endswith("worker") else process
    os.kill(target, signal.SIGTERM if sent == "SIGTERM" else signal.SIGKILL)
    ended = forks.wait(process)

    assert ended == {"SIGTERM": 75, "SIGKILL": -signal.SIGKILL}.get(sent, 1)
    if sent.endswith("worker"):
        assert "Error: a worker process that decodes images was killed by SIGKILL" in printed.read_text()
    deadline = time.monotonic() + 10
    while any(map(lives, started)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [p for p in started if lives(p)] == []
    assert forks.wait(forks.start(call(folder, out), printed)) == 0
    assert "went on: kept" in printed.read_text()
    assert lasting(out) == lasting(whole)
