"""Progress says how fast it goes in words that fit; without a terminal a line now and then, and nothing where it is quiet."""

from __future__ import annotations

import re
import sys
import time

import pytest

from featurecache import progress
from featurecache.progress import Bar, Stopwatch, format_rate, format_seconds, says_when_loading


@pytest.mark.parametrize(
    ("done", "seconds", "unit", "expected"),
    [
        (1000, 10.0, "rows", "100 rows/s"),
        (15, 10.0, "rows", "1.5 rows/s"),
        (10, 10.0, "rows", "1.0 rows/s"),
        (4, 10.0, "trials", "2.5 s/trial"),
        (1, 90.0, "runs", "90.0 s/run"),
        (0, 5.0, "rows", "0 rows/s"),
    ],
)
def test_a_rate_below_one_a_second_is_told_in_seconds(done, seconds, unit, expected):
    assert format_rate(done, seconds, unit) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(7.4, "7 s"), (90, "1.5 min"), (5400, "1.5 h")])
def test_time_is_told_in_the_unit_that_fits(seconds, expected):
    assert format_seconds(seconds) == expected


def test_without_a_terminal_a_line_says_where_it_stands(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.05)

    with Bar("training", 100, 0, False) as bar:
        bar.advance(40, Stopwatch())
        time.sleep(0.2)

    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("training: 40/100 rows, ") and first.endswith(" left")
    assert "()" not in first


def test_before_the_first_minute_and_under_quiet_there_is_nothing(capsys, monkeypatch):
    with Bar("training", 100, 0, False) as bar:
        bar.advance(40, Stopwatch())
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.01)
    with Bar("training", 100, 0, True) as bar:
        bar.advance(40, Stopwatch())
        time.sleep(0.05)

    assert capsys.readouterr().err == ""


def test_a_line_comes_also_where_nothing_is_done_yet(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.02)

    with Bar("few-shot", 3, 0, False, unit="trials"):
        time.sleep(0.1)

    assert capsys.readouterr().err.splitlines()[0] == "few-shot: 0/3 trials"


def test_what_is_waited_for_stands_in_brackets():
    watch = Stopwatch()
    with watch.waiting("read"):
        pass
    bar = Bar("extracting", 10, 0, True)

    bar.advance(5, watch)

    assert re.search(r"rows/s \(read \d+%\)$", bar._rate())


def test_a_library_that_begins_to_load_is_told_once_and_one_that_is_there_is_not(caplog, tmp_path, monkeypatch):
    (tmp_path / "slow_library.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    caplog.set_level("INFO", logger="featurecache")

    for _ in range(2):
        with says_when_loading("slow_library", "train-head: loading"):
            __import__("slow_library")
    sys.modules.pop("slow_library")

    assert caplog.messages == ["train-head: loading"]
