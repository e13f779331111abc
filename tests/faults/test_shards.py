"""Several writers of one store, at once, killed and started again: the store is the one that a single writer makes."""

from __future__ import annotations

import json
import multiprocessing
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

from featurecache.stores import FeatureStore, Shard, create_store, finish_share, open_store
from tests.extraction_samples import lasting, pictures
from tests.faults import dying
from tests.faults.conftest import COUNTED
from tests.faults.dying import die
from tests.faults.extent import ALL, sampled
from tests.faults.forks import ROOT, Forks, until
from tests.faults.test_crash_points import check_readable, said, wide
from tests.faults.test_crash_points import complete as complete_whole
from tests.faults.test_kill import call
from tests.featurecache.stores.samples import files, table

ROWS = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "animals", cat=200, dog=200, emu=112)


@pytest.fixture(scope="module")
def whole(forks: Forks, folder: Path) -> Path:
    """A store that one process wrote."""
    out = folder.parent / "whole.zarr"
    assert forks.wait(forks.start(call(folder, out), folder.parent / "whole.txt")) == 0
    return out


def started(forks: Forks, folder: Path, out: Path, count: int, *more: str) -> list[int]:
    shards = [f"{number}/{count}" for number in range(count)]
    return [
        forks.start(call(folder, out, "--shard", shard, *more), out.with_name(f"{shard[0]}.txt")) for shard in shards
    ]


def committed(path: Path) -> int:
    """Return the rows that a reader sees at this moment."""
    if not path.exists():
        return 0
    store = open_store(path)
    return store.header.rows - sum(map(len, store.missing()))


@pytest.mark.parametrize("count", sampled([1, 2, 4], 2))
def test_processes_at_once_make_the_store_of_one(forks, folder, whole, tmp_path, count):
    out = tmp_path / "x.zarr"

    ends = [forks.wait(process) for process in started(forks, folder, out, count)]

    assert ends == [0] * count
    assert lasting(out) == lasting(whole)
    assert (out / "scores/logme.json").read_bytes() == (whole / "scores/logme.json").read_bytes()
    told = [(tmp_path / f"{number}.txt").read_text() for number in range(count)]
    assert sum("the store is finished" in text for text in told) >= 1
    assert all(re.search(r"rows of this share \(rows \d+ to \d+\)", text) for text in told)


def test_processes_at_once_make_the_file_of_one(forks, folder, tmp_path):
    alone, shared = tmp_path / "alone.h5", tmp_path / "shared.h5"
    assert forks.wait(forks.start(call(folder, alone), tmp_path / "alone.txt")) == 0

    ends = [forks.wait(process) for process in started(forks, folder, shared, 2)]

    assert ends == [0, 0]
    assert shared.read_bytes() == alone.read_bytes()
    assert not (tmp_path / "shared.h5.zarr").exists()


def test_shares_one_after_the_other_make_the_store_of_one(forks, folder, whole, tmp_path):
    out, seen = tmp_path / "x.zarr", []

    for number in (2, 0, 1):
        arguments = call(folder, out, "--shard", f"{number}/3", "--json")
        assert forks.wait(forks.start(arguments, tmp_path / "told.txt")) == 0
        told = (tmp_path / "told.txt").read_text()
        report = json.loads(told[told.index("{\n") :])
        seen.append((report["share"], report["left"], report["finished"]))

    assert seen == [([256, 512], 256, False), ([0, 128], 128, False), ([128, 256], 0, True)]
    assert lasting(out) == lasting(whole)


def test_more_shares_than_chunks_leave_some_empty_and_say_so(forks, folder, whole, tmp_path):
    out = tmp_path / "x.zarr"

    ends = [forks.wait(process) for process in started(forks, folder, out, 8)]

    assert ends == [0] * 8
    assert "empty: fewer chunks than shares" in (tmp_path / "0.txt").read_text()
    assert lasting(out) == lasting(whole)


def test_a_reader_beside_writers_sees_only_committed_rows(forks, folder, whole, tmp_path):
    counts: set[int] = set()
    for attempt in range(3):  # on a busy machine the reader may come when all is done
        counts |= counts_seen(forks, folder, tmp_path / f"{attempt}.zarr", open_store(whole))
        if len(counts) > 3:
            break

    assert len(counts) > 3


def counts_seen(forks: Forks, folder: Path, out: Path, reference: FeatureStore) -> set[int]:
    """Return how many rows were there at the looks that a reader took while four writers were at work; each is held."""
    seen = [0]
    processes = started(forks, folder, out, 4)

    def looked() -> bool:
        if not out.exists():
            return False
        store = open_store(out)
        missing = store.missing()
        real = np.setdiff1d(np.arange(ROWS), np.concatenate([np.arange(0), *map(np.asarray, missing)]))
        for spec in store.header.arrays:
            np.testing.assert_array_equal(store.read(spec.name, real), reference.read(spec.name, real))
        assert len(real) >= seen[-1], "what was committed once stays so"
        seen.append(len(real))
        return len(real) == ROWS

    for process in processes:
        until(looked, process)
    assert [forks.wait(process) for process in processes] == [0] * 4
    return {count for count in seen if 0 < count < ROWS}


def test_kills_of_writers_at_random_moments_lose_nothing_that_was_committed(forks, folder, whole, tmp_path):
    draw, out = random.Random(2), tmp_path / "x.zarr"
    before = 0

    for attempt in range(6 if ALL else 3):
        count = (4, 2, 3)[attempt % 3]
        processes = started(forks, folder, out, count)
        goal = committed(out) + draw.randint(0, 120)
        until(lambda goal=goal: committed(out) > goal, processes[0])
        for process in processes:
            os.kill(process, signal.SIGKILL)
        for process in processes:
            forks.wait(process)
        assert committed(out) >= before
        before = committed(out)

    assert before > 0
    assert [forks.wait(process) for process in started(forks, folder, out, 2)] == [0, 0]
    assert lasting(out) == lasting(whole)


def test_one_process_goes_on_where_several_were_killed(forks, folder, whole, tmp_path):
    out = tmp_path / "x.zarr"
    processes = started(forks, folder, out, 2)
    until(lambda: committed(out) > 100, processes[0])
    for process in processes:
        os.kill(process, signal.SIGKILL)
        forks.wait(process)
    kept = committed(out)

    assert forks.wait(forks.start(call(folder, out), tmp_path / "told.txt")) == 0

    assert f"kept {kept} rows" in (tmp_path / "told.txt").read_text()
    assert lasting(out) == lasting(whole)


def test_a_second_writer_of_a_share_and_one_of_the_whole_are_refused_with_the_first_ones_pid(forks, folder, tmp_path):
    out = tmp_path / "x.zarr"
    first = forks.start(call(folder, out, "--shard", "0/2"), tmp_path / "first.txt")
    until(lambda: committed(out) > 0, first)
    os.kill(first, signal.SIGSTOP)  # so that it cannot be done before the others look
    told = {}
    try:
        for name, words in {"same": ["--shard", "0/2"], "overlapping": ["--shard", "0/3"], "whole": []}.items():
            assert forks.wait(forks.start(call(folder, out, *words), tmp_path / "told.txt")) == 1
            told[name] = (tmp_path / "told.txt").read_text()
        assert forks.wait(forks.start(call(folder, out, "--shard", "1/2"), tmp_path / "told.txt")) == 0
    finally:
        os.kill(first, signal.SIGCONT)

    for text in told.values():
        assert re.search(
            rf"rows 0 to 255, is being written by process {first} on \S+, for \d+ s\. Wait for it",
            " ".join(text.split()),
        )
    assert forks.wait(first) == 0


def test_ranks_of_torchrun_share_the_rows(folder, whole, tmp_path):
    out = tmp_path / "x.zarr"
    script = tmp_path / "extract.py"
    script.write_text(f"import cli\ncli.main({call(folder, out, '--shard', 'auto')!r})\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]

    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "rows of this share (rows 0 to 255)" in done.stdout
    assert "rows of this share (rows 256 to 511)" in done.stdout
    assert lasting(out) == lasting(whole)


def test_a_share_can_extend_and_the_others_wait_for_it(forks, folder, whole, tmp_path):
    out = tmp_path / "x.zarr"
    assert forks.wait(forks.start(call(folder, out, "--layers", "none"), tmp_path / "told.txt")) == 0

    ends = [forks.wait(process) for process in started(forks, folder, out, 3, "--extend")]

    assert ends == [0] * 3
    assert lasting(out) == lasting(whole)


COUNT = 2
SMALL = 16


def share(path: Path, number: int) -> None:
    """Do all that the writer of one share does: make the store where it is not there, fill the share, seal at the end."""
    shard = Shard(number, COUNT)
    if not path.exists():
        store = create_store(path, wide(), table(SMALL), chunk_multiple=8, constants=said, shard=shard)
    else:
        store = open_store(path, writable=True, shard=shard)
    if not store.finished:
        store.finish = lambda: None
        complete_whole(store)
    finish_share(path, store).close()


def shares(path: Path) -> None:
    for number in range(COUNT):
        share(path, number)


def test_whatever_step_of_a_share_is_the_last_the_end_is_the_same(tmp_path, monkeypatch, record_property):
    monkeypatch.setattr("featurecache.stores._chunks.PAGE", 64)  # so that a small store has two chunks
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    # what a kill leaves behind is the same before and after an fsync
    monkeypatch.setattr(dying, "STEPS", tuple(name for name in dying.STEPS if name != "fsync"))
    single = create_store(tmp_path / "whole.zarr", wide(), table(SMALL), chunk_multiple=8, constants=said)
    complete_whole(single)
    single.close()
    reference = files(tmp_path / "whole.zarr")
    count = die(shares, tmp_path / "counted.zarr", last=-1)
    assert count > 50

    tried = sampled(range(1, count + 1), 12)
    for last in tried:
        path = tmp_path / f"{last}.zarr"
        assert die(shares, path, last) == 0
        if path.exists():
            check_readable(path)
        for number in (1, 0):
            share(path, number)
        assert files(path) == reference, f"killed at step {last}"

    record_property(COUNTED, ["death at a step", "shares", len(tried), f"of {count} steps"])


def sealing(path: Path, gate) -> None:
    store = open_store(path)
    gate.wait()
    finish_share(path, store).close()


def test_two_that_end_at_the_same_moment_seal_the_store_once(tmp_path):
    reference = create_store(tmp_path / "whole.zarr", wide(), table(SMALL), chunk_multiple=8, constants=said)
    complete_whole(reference)
    reference.close()
    context = multiprocessing.get_context("fork")
    for attempt in range(8 if ALL else 4):
        path, gate = tmp_path / f"{attempt}.zarr", context.Barrier(2)
        store = create_store(path, wide(), table(SMALL), chunk_multiple=8, constants=said)
        store.finish = lambda: None
        complete_whole(store)
        store.close()

        ends = [context.Process(target=sealing, args=(path, gate)) for _ in range(2)]
        for process in ends:
            process.start()
        for process in ends:
            process.join()

        assert [process.exitcode for process in ends] == [0, 0]
        assert open_store(path).finished
        assert files(path) == files(tmp_path / "whole.zarr")


def test_a_file_system_clock_is_asked_how_long_a_writer_was_silent(tmp_path):
    """See tests/featurecache/stores/test_locking.py for what follows from it."""
    from featurecache.stores._locking import _silent_seconds

    path = tmp_path / "writer.lock"
    with open(path, "w") as file:
        os.utime(path, (time.time() - 100, time.time() - 100))
        assert 99 < _silent_seconds(path, file.fileno()) < 110
    assert [left.name for left in tmp_path.iterdir()] == ["writer.lock"]
