"""A warning that many fits give alike is given once, with how often."""

from __future__ import annotations

import logging

import pytest

from featurecache.repetition import count_warnings, warn_repeatedly


def warn(detail: str = "the best lambda 10") -> None:
    warn_repeatedly("ridge over embedding", detail, "lies at the edge of the grid")


def test_alone_it_is_given_at_once(caplog):
    warn()

    assert caplog.messages == ["ridge over embedding: the best lambda 10 lies at the edge of the grid"]


def test_many_are_one_with_how_often(caplog):
    with count_warnings(), count_warnings():
        for detail in ("the best lambda 10", "the best lambda 0.1", "the best lambda 10"):
            warn(detail)
        assert caplog.messages == []

    assert caplog.messages == [
        "ridge over embedding: the best lambda 10 (2 times), the best lambda 0.1 lies at the edge of the grid, 3 times in all"
    ]


def test_they_are_given_also_where_the_work_fails(caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError), count_warnings():
        warn()
        raise ZeroDivisionError

    assert len(caplog.messages) == 1 and "times" not in caplog.messages[0]
