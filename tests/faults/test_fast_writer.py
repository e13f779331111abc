"""A writer without torch, killed at random moments of its short life: only committed rows are there, and the end is the same."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurecache.stores import examine_store, open_store, store_exists
from tests.faults.conftest import COUNTED
from tests.faults.extent import ALL
from tests.faults.fast_writer import ARRAYS, BATCH, PROGRAM, ROWS, values
from tests.faults.forks import Forks, until
from tests.featurecache.stores.samples import files

KILLS = 150 if ALL else 10
"""In each format."""
MOST = 6
"""Kills of one store until the writer is let to its end."""


@pytest.fixture(scope="module")
def writers() -> Iterator[Forks]:
    made = Forks(PROGRAM)
    yield made
    made.close()


def committed(path: Path) -> int:
    """Return how many rows a store holds, which must be the first ones, and what was written."""
    if not store_exists(path):
        return 0
    store = open_store(path)
    missing = store.missing()
    count = missing[0].start if missing else ROWS
    assert missing in ([range(count, ROWS)], [])
    assert count % BATCH == 0
    for spec in ARRAYS:
        found = store.read(spec.name, slice(0, count))
        assert found.tobytes() == values(range(count), spec)[:, 0].tobytes()
    return count


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_writer_without_torch_loses_nothing_that_it_committed(suffix, writers, tmp_path, record_property):
    draw, printed, whole = random.Random(suffix), tmp_path / "printed.txt", tmp_path / f"0{suffix}"
    took = []
    for attempt in range(3):  # the shortest is that of a writer, the others are those of a busy machine
        began = time.monotonic()
        assert writers.wait(writers.start([str(tmp_path / f"{attempt}{suffix}")], printed)) == 0, printed.read_text()
        took.append(time.monotonic() - began)
    seconds = min(took)
    assert printed.read_text() == "written without torch\n"
    reference = files(whole)
    kills, counts, stores = 0, [], 0

    while kills < KILLS:
        place = tmp_path / str(stores)
        place.mkdir()
        path, before, stores = place / f"x{suffix}", 0, stores + 1
        for _ in range(draw.randint(1, MOST)):
            process = writers.start([str(path)], printed)
            moment = time.monotonic() + draw.uniform(0, seconds)
            until(lambda moment=moment: time.monotonic() > moment, process)
            os.kill(process, signal.SIGKILL)
            ended = writers.wait(process)
            assert ended in (0, -signal.SIGKILL), printed.read_text()
            count = committed(path)
            assert count >= before, "what was committed once stays so"
            before = count
            if ended == 0:
                break
            kills += 1
            counts.append(count)
        assert writers.wait(writers.start([str(path)], printed)) == 0, printed.read_text()
        assert [entry.name for entry in place.iterdir()] == [path.name]
        assert files(path) == reference
        assert examine_store(path).damages == ()

    part_way = sum(0 < count < ROWS for count in counts)
    assert part_way >= (3 if ALL else 0), "no kill met a store that was being filled"
    met = f"{part_way} with some rows committed and others not; {stores} stores; {seconds:.1f} s each"
    record_property(COUNTED, ["kill -9", f"the writer without torch, {suffix}", kills, met])
