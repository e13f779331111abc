"""A disk that fills up while a verb writes: it says so, nothing is lost, and with more room the same command ends as ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurecache.stores import examine_store, open_store
from tests.faults.extent import sampled
from tests.faults.places import can_mount, free, resize, small_disk
from tests.faults.verbs import Verbs, outcome

AMPLE = 64 * 1024
WRITING = (
    "extract", "extract into a file", "extract with text", "extend", "extend a file", "merge", "merge into a file",
    "convert to a file", "convert to a folder", "convert to fewer bits", "delete", "delete from a file", "repair", "train",
    "embed", "embed into a table",
)  # fmt: skip
SHARES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)
"""Of the room that a command needs, that it has."""
CASES = [(name, share) for name in WRITING for share in SHARES]


def used(disk: Path, size: int) -> int:
    """Return the KiB of a disk of so many KiB that are taken."""
    return size - free(disk) // 1024


def needed(verbs: Verbs, name: str, place: Path) -> int:
    """Return the KiB that a command takes beyond what stands there when it begins."""
    with small_disk(place, AMPLE) as disk:
        words = verbs.begin(name, disk / "place")
        before = used(disk, AMPLE)
        code, said = verbs.run(words)
        assert code == 0, said
        return used(disk, AMPLE) - before


def check_stores(place: Path) -> None:
    """Open every store, and compare what it calls committed with its checksums."""
    for path in sorted(place.glob("*.zarr")):
        if path.suffixes[-2:] != [".h5", ".zarr"]:
            open_store(path)
            assert examine_store(path).damages == ()
    for path in sorted(place.glob("*.h5")):
        open_store(path)
        assert examine_store(path).damages == ()


@can_mount
@pytest.mark.parametrize(("name", "share"), sampled(CASES, 4))
def test_a_disk_that_fills_up_is_named_and_with_room_the_same_command_ends_as_ever(verbs, tmp_path, name, share):
    whole, room = verbs.outcome(name), needed(verbs, name, tmp_path / "measured")

    with small_disk(tmp_path / "disk", AMPLE) as disk:
        words = verbs.begin(name, disk / "place")
        resize(disk, used(disk, AMPLE) + max(4, round(share * room)))
        code, said = verbs.run(words)
        if name != "repair":
            check_stores(disk / "place")

        assert "Traceback" not in said
        if code:  # the last bytes may be those of scores and notes, which are told and can be missed
            assert code == 1, said
            assert "No space left on device" in said, said
            assert "make room" in said or "Give another" in said or "give an" in said, said
            assert str(disk) in said
        else:
            assert share > 0.5
        resize(disk, AMPLE)
        code, said = verbs.run(words)
        assert code == 0, said
        assert outcome(disk / "place") == whole
