"""Provenance is a list of lines that only grows, and survives a writer that was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurecache.provenance import PROVENANCE, damaged_lines, note, provenance


def test_lines_come_back_in_the_order_they_were_noted(tmp_path):
    note(tmp_path, {"device": "cpu", "command": ["a"]})
    note(tmp_path, {"device": "cuda"})

    assert provenance(tmp_path) == [{"device": "cpu", "command": ["a"]}, {"device": "cuda"}]


def test_nothing_noted_is_nothing_known(tmp_path):
    assert provenance(tmp_path) == []


def test_a_torn_last_line_is_left_out(tmp_path):
    note(tmp_path, {"device": "cpu"})
    with open(tmp_path / PROVENANCE, "a") as file:
        file.write('{"device": "cu')

    assert provenance(tmp_path) == [{"device": "cpu"}]
    assert damaged_lines(tmp_path) == []


@pytest.mark.parametrize("place", [0, 3, 14, 21, 30])
def test_a_changed_line_is_left_out_and_found(tmp_path, place):
    for device in ("cpu", "cuda"):
        note(tmp_path, {"device": device})
    content = bytearray((tmp_path / PROVENANCE).read_bytes())
    content[place] ^= 1
    (tmp_path / PROVENANCE).write_bytes(content)

    assert provenance(tmp_path) == [{"device": "cuda"}]
    assert damaged_lines(tmp_path) == [1]


def test_a_line_after_a_torn_one_is_read(tmp_path):
    (tmp_path / PROVENANCE).write_text('{"device": "cu')

    note(tmp_path, {"device": "cpu"})

    assert provenance(tmp_path) == [{"device": "cpu"}]


def test_values_that_json_does_not_know_are_noted_as_text(tmp_path):
    note(tmp_path, {"out": Path("some/where"), "name": "é"})

    assert provenance(tmp_path) == [{"out": "some/where", "name": "é"}]
