"""`kill -9` at any moment of any command that makes or changes a store: it opens, holds what was committed, ends the same.

The moments are drawn over the time that the command takes when nothing interrupts it, and know nothing of its steps. `make
faults` kills every command many times, `make test` some of them a few times.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from featurecache.stores import examine_store, open_store, store_exists
from tests.faults.conftest import COUNTED
from tests.faults.extent import ALL, sampled
from tests.faults.forks import Forks, until
from tests.faults.operations import OPERATIONS, Operation, Samples

KILLS = 30 if ALL else 2
"""Of each command."""
MOST = 4
"""Kills of one store until the command is let to its end."""


@pytest.fixture(scope="module")
def samples(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return Samples(forks, tmp_path_factory.mktemp("samples"))


class Killed:
    """A command that is started in fresh folders, and killed."""

    def __init__(self, forks: Forks, operation: Operation, folder: Path) -> None:
        self._forks, self._operation, self._folder = forks, operation, folder
        self.before, self.after = folder / "before", folder / "after"
        self.before.mkdir()
        for name, source in operation.stands.items():
            copy(source, self.before / name)
            if (notes := source.with_name(f"{source.name}.notes")).exists():
                copy(notes, self.before / f"{name}.notes")
        operation.spoil(self.before)
        copy(self.before, self.after)
        began = time.monotonic()
        self.end(self.after)
        self.seconds = time.monotonic() - began
        """What the command takes from its beginning to its end; the shortest that was seen."""

    def end(self, place: Path) -> None:
        """Let the command come to its end."""
        assert self._forks.wait(self._start(place)) == 0, self._said()

    def killed_at(self, place: Path, part: float) -> bool:
        """Kill the command when such a part of its time is over; return whether it was still running."""
        fresh, began = lasting(place) == lasting(self.before), time.monotonic()
        process = self._start(place)
        until(lambda: time.monotonic() - began > part * self.seconds, process)
        took = time.monotonic() - began
        os.kill(process, signal.SIGKILL)
        ended = self._forks.wait(process)
        assert ended in (0, -signal.SIGKILL), self._said()
        if ended == 0 and fresh:
            self.seconds = min(self.seconds, took)
        return ended == -signal.SIGKILL

    def _start(self, place: Path) -> int:
        return self._forks.start(self._operation.command(place), self._folder / "printed.txt")

    def _said(self) -> str:
        return (self._folder / "printed.txt").read_text()

    def check(self, place: Path) -> int:
        """Read every store as whoever comes next; return how many rows of its arrays and views it holds."""
        count = 0
        for name, values in self._operation.stores.items():
            if store_exists(place / name) or not self._operation.makes:
                count += held(place / name, values or self.after / name)
        return count

    def met(self, place: Path) -> str:
        """Return in which part of its work the command was killed."""
        now = lasting(place)
        if now == lasting(self.before):
            return "before its work"
        return "after it" if now == lasting(self.after) else "in it"


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def lasting(place: Path) -> dict[str, bytes]:
    """Return path -> content of all that must be equal, whatever happened: not provenance and scores, nor empty folders."""
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(place)): b"" if path.name == "writer.lock" else path.read_bytes()  # it names the process
        for path in files if path.name != "provenance.jsonl" and "scores" not in path.parts
    }  # fmt: skip


def held(path: Path, reference: Path) -> int:
    """Hold what the ledger calls committed against the reference, bit by bit; return how many rows of how many arrays.

    Rows that `verify` names as damaged are left out, and so are deleted ones, which are so all or none.
    """
    store, expected, count = open_store(path), open_store(reference), 0
    deleted = store.status() == "deleted"
    damages = examine_store(path).damages
    for spec in store.header.arrays:
        for view in range(store.header.views):
            real = np.ones(store.header.rows, bool)
            for gap in store.missing([spec.name], [view]):
                real[gap.start : gap.stop] = False
            count += int(real.sum())
            for damage in damages:
                if damage.array == spec.name and damage.view in (None, view) and damage.rows is not None:
                    real[damage.rows.start : damage.rows.stop] = False
            rows = np.flatnonzero(real & ~deleted)
            found, known = store.read(spec.name, rows, view), expected.read(spec.name, rows, view)
            assert found.tobytes() == known.tobytes(), f"{spec.name} of {path}"
    return count


@pytest.mark.parametrize("name", sampled(list(OPERATIONS), 4))
def test_kills_at_random_moments_lose_nothing_and_the_end_is_the_same(name, forks, samples, tmp_path, record_property):
    draw, killed = random.Random(name), Killed(forks, OPERATIONS[name](samples), tmp_path)
    met: Counter[str] = Counter()
    lives = 0

    while met.total() < KILLS:
        place, held_before = tmp_path / f"life-{lives}", 0
        copy(killed.before, place)
        for _ in range(draw.randint(1, MOST)):
            if not killed.killed_at(place, draw.uniform(0, 1)):
                break
            held_now = killed.check(place)
            assert held_now >= held_before, "what was committed once stays so"
            held_before = held_now
            met[killed.met(place)] += 1
        killed.end(place)
        assert lasting(place) == lasting(killed.after)
        shutil.rmtree(place)
        lives += 1

    found = ", ".join(f"{count} {where}" for where, count in sorted(met.items()))
    record_property(COUNTED, ["kill -9", name, met.total(), f"{found}; {lives} stores; {killed.seconds:.1f} s each"])
