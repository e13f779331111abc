"""One process that forks command lines, for all tests of this folder; and how often they hit, told at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.forks import Forks
from tests.faults.verbs import Verbs

COUNTED = "faults"
"""What a test records as its property: [kind, what was hit, how often, what it met]."""


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    made.close()


@pytest.fixture(scope="session")
def verbs(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Verbs:
    return Verbs(forks, tmp_path_factory.mktemp("verbs"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell what the tests counted, wherever they ran, and the sum of each kind."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    told = {
        (report.nodeid, *value)
        for report in reports for name, value in getattr(report, "user_properties", ()) if name == COUNTED
    }  # fmt: skip
    if not told:
        return
    terminalreporter.section("faults")
    sums: Counter[str] = Counter()
    for _, kind, what, count, met in sorted(told):
        sums[kind] += count
        terminalreporter.write_line(f"{count:5} {kind} | {what} | {met}")
    for kind, count in sums.items():
        terminalreporter.write_line(f"{count:5} {kind} in all")
