"""SIGTERM and Ctrl-C in every phase of every long verb: exit code 75, no traceback, nothing lost, and the same command ends it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from featurecache.stores import examine_store, is_store, left_in
from tests.faults.extent import sampled
from tests.faults.phases import PHASES, place_of
from tests.faults.verbs import outcome

CASES = [
    (name, phase, sent)
    for name, phases in PHASES.items() for phase in phases for sent in (signal.SIGTERM, signal.SIGINT)
]  # fmt: skip


def stores_in(place: Path) -> list[Path]:
    """Return the stores of a folder; one that is being removed, or made, is hidden."""
    return [path for path in sorted(place.iterdir()) if is_store(path) and not path.name.startswith(".")]


@pytest.mark.parametrize(("name", "phase", "sent"), sampled(CASES, 6))
def test_a_signal_in_any_phase_ends_with_75_and_the_same_command_ends_it(verbs, tmp_path, name, phase, sent):
    place = tmp_path / "place"
    words = verbs.begin(name, place)

    code, said = verbs.run(words, {phase: sent})

    assert (code, "Traceback" in said) == (75, False), said
    assert "Interrupted." in said
    assert "the same command" in said
    for store in stores_in(place):
        assert examine_store(store).damages == () or name == "repair"
    code, said = verbs.run(words)
    assert code == 0, said
    assert outcome(place) == verbs.outcome(name)
    assert [left for store in stores_in(place) for left in left_in(store)] == []


def test_a_second_interrupt_ends_at_once_and_loses_nothing_either(verbs, tmp_path):
    words = verbs.begin("extract", tmp_path / "place")

    code, said = verbs.run(
        words,
        {"save_features:_computed 3": signal.SIGINT, "featurecache.stores._behind:WriteBehind.__exit__": signal.SIGINT},
    )

    assert (code, said.splitlines()[-1]) == (75, "Ended at once. What is committed stays.")
    assert examine_store(tmp_path / "place/x.zarr").damages == ()
    code, said = verbs.run(words)
    assert code == 0, said
    assert outcome(tmp_path / "place") == verbs.outcome("extract")


@pytest.mark.parametrize("phase", sorted({phase for phases in PHASES.values() for phase in phases}))
def test_every_phase_has_its_function_still(phase):
    owner, name, _ = place_of(phase)

    assert callable(getattr(owner, name))
