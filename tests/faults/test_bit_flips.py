"""One flipped bit, anywhere in a finished store, is found and told, and a repair makes the store what it was, byte for byte.

`make faults` flips more of them than `make test`, and ends a repair at every step of it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.features import ArraySpec
from featurecache.stores import examine_store, mend_store, open_store
from tests.faults.conftest import COUNTED
from tests.faults.dying import die
from tests.faults.extent import ALL
from tests.faults.test_crash_points import ROWS, check_readable, said, values, wide, work
from tests.featurecache.stores.samples import table

FLIPS = 400 if ALL else 40
"""In each format."""
SUFFIXES = (".zarr", ".h5")


FIRST = (wide().arrays[0], [0])


class Remade:
    """What the small store of the crash tests is made of."""

    def table(self) -> Any:
        return table(ROWS)

    def classes(self, classes: range) -> Mapping[str, np.ndarray]:
        return said(classes)

    def rows(
        self, rows: range, lacking: Mapping[ArraySpec, tuple[int, ...]], skipped: Mapping[int, str]
    ) -> Iterator[tuple[range, Mapping[str, np.ndarray]]]:
        yield rows, {spec.name: values(rows, spec, views) for spec, views in lacking.items()}


def content_of(place: Path) -> dict[str, bytes]:
    """Return path -> content of everything in a folder."""
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module", params=SUFFIXES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished store with views, classes and a skipped row, called `x` with its suffix."""
    place = tmp_path_factory.mktemp("whole")
    work(place / f"x{request.param}", wide())
    return place


def drawn(whole: Path, count: int) -> list[tuple[str, int, int]]:
    """Return (file, byte, bit): every file equally often, its first and last byte among those drawn."""
    draw, contents = random.Random(0), content_of(whole)
    names = sorted(contents)
    found = []
    for number in range(count):
        name = names[number % len(names)]
        turn, last = number // len(names), len(contents[name]) - 1
        place = {0: draw.randint(0, last), 1: 0, 2: last}.get(turn, draw.randint(0, last))
        found.append((name, place, draw.randrange(8)))
    return found


def flip(file: Path, place: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def test_every_flipped_bit_is_found_and_mended(whole, tmp_path, monkeypatch, record_property):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    before, (store,) = content_of(whole), list(whole.iterdir())
    assert examine_store(store).damages == ()

    for number, (name, place, bit) in enumerate(drawn(whole, FLIPS)):
        shutil.copytree(whole, tmp_path / str(number))
        damaged = tmp_path / str(number) / store.name
        flip(tmp_path / str(number) / name, place, bit)

        found = examine_store(damaged).damages
        assert found, f"bit {bit} of byte {place} of {name} is not found"
        assert all(damage.way for damage in found), (found, name, place, bit)
        if damaged.is_dir():
            assert str(Path(name).relative_to(store.name)) in {damage.file for damage in found}

        assert mend_store(damaged, Remade()) == []
        assert content_of(tmp_path / str(number)) == before, f"bit {bit} of byte {place} of {name} is not mended"
        shutil.rmtree(tmp_path / str(number))

    record_property(COUNTED, ["flipped bit", f"in {len(before)} files of {store.name}", FLIPS, "all found, all mended"])


def damage(place: Path, store: str) -> None:
    """Damage what every way of mending is needed for."""
    if store.endswith(".h5"):
        content = (place / store).read_bytes()
        for at in (content.index(b"\x89HDF"), len(content) - 5, content.index(values(range(3, 4), *FIRST).tobytes())):
            flip(place / store, at, 2)
        return
    for name in ("ledger.jsonl", "sample_id/c/0", "status/c/0", "embedding/zarr.json"):
        flip(place / store / name, 20, 2)
    for name in ("embedding/c/0/1/0", "layers/cls/03/c/0/0/0", "text/embedding/c/0/0/0"):
        flip(place / store / name, 9, 6)
    flip(place / store / "layers/cls/03/c/0/1/0", ROWS * 8 + 1, 0)
    (place / store / "embedding/c/0/0/0").unlink()


def mending(store: Path) -> None:
    mend_store(store, Remade())


def mend(store: Path) -> None:
    """Mend a store as `verify --repair` does; where nothing is damaged any more, end what a kill has left."""
    if examine_store(store).damages:
        assert mend_store(store, Remade()) == []
        return
    opened = open_store(store, writable=True)
    if not opened.finished:
        opened.finish()
    opened.close()


def test_a_repair_that_dies_at_any_step_is_ended_by_the_next(whole, tmp_path, monkeypatch, record_property):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    before, (name,) = content_of(whole), [store.name for store in whole.iterdir()]
    shutil.copytree(whole, tmp_path / "damaged")
    damage(tmp_path / "damaged", name)
    shutil.copytree(tmp_path / "damaged", tmp_path / "counted")
    count = die(mending, tmp_path / "counted" / name, last=-1)
    assert content_of(tmp_path / "counted") == before
    assert count > 30

    tried = range(1, count + 1, 1 if FLIPS >= 300 else 7)
    for last in tried:
        place = tmp_path / str(last)
        shutil.copytree(tmp_path / "damaged", place)
        assert die(mending, place / name, last) == 0
        mend(place / name)
        assert examine_store(place / name).damages == ()
        check_readable(place / name)
        assert content_of(place) == before, f"killed at step {last}"
        shutil.rmtree(place)

    record_property(COUNTED, ["death at a step", f"repair of {name}", len(tried), f"of {count} steps"])
