"""Rank agreement with runs: the weighted tau of SciPy, and which points it is over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import weightedtau

from featurecache.errors import RunError
from pipelines.scores import Point, agreements, measured
from pipelines.scores._against import weighted_tau


def point(value: float, head: str = "ridge", data: str = "photos") -> Point:
    return Point(
        folder=Path("run"), head=head, arrays=("embedding",), backbone={}, data={"name": data}, metric="top1", split="test",
        value=value,
    )  # fmt: skip


def written(folder: Path, metrics: dict, **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    record = {
        "task": "classification", "head": "ridge", "arrays": ["embedding"], "metrics": metrics,
        "features": {"backbone": {"name": "b"}, "data": {"name": "d"}}, **changes,
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("levels", [1000, 4], ids=["distinct", "ties"])
@pytest.mark.parametrize("seed", range(5))
def test_the_weighted_tau_is_that_of_scipy(levels, seed):
    draw = np.random.default_rng(seed)
    first, second = draw.integers(0, levels, 25) / 10, draw.integers(0, levels, 25) / 10

    assert weighted_tau(first, second) == pytest.approx(weightedtau(first, second).statistic, rel=1e-10)


def test_of_a_constant_there_is_no_tau():
    assert np.isnan(weighted_tau(np.ones(4), np.arange(4)))


def test_the_interval_is_around_the_tau_and_the_same_again():
    draw = np.random.default_rng(0)
    paired = [(point(value + draw.normal()), number, value) for number, value in enumerate(np.arange(12.0))]

    (first,), (again,) = agreements("logme", paired), agreements("logme", paired)

    assert first == again and first.points == 12
    assert -1 <= first.tau.low < first.tau.value < first.tau.high <= 1


def test_several_runs_on_one_array_are_one_point():
    paired = [(point(v), key, score) for key, score in zip("abcd", (1, 2, 3, 4), strict=True) for v in (score, -9)]

    (found,) = agreements("logme", paired)

    assert found.points == 4 and found.tau.value == pytest.approx(1)


def test_heads_and_data_sets_are_kept_apart():
    paired = [(point(1.0, head, data), "a", 1.0) for head in ("ridge", "lfa") for data in ("cats", "dogs")]

    found = agreements("logme", paired)

    assert len({(a.head, a.data) for a in found}) == len(found) == 4


def test_two_points_say_nothing():
    (found,) = agreements("logme", [(point(1.0), "a", 1.0), (point(2.0), "b", 2.0)])

    assert found.points == 2 and found.tau is None


def test_test_rows_count_before_validation(tmp_path):
    both = written(tmp_path / "both", {"val": {"top1": {"value": 0.5}}, "test": {"top1": {"value": 0.7}}})
    only = written(tmp_path / "only", {"val": {"top1": {"value": 0.6}}})

    assert [(p.split, p.value) for folder in (both, only) for p in measured(folder)] == [("test", 0.7), ("val", 0.6)]


def test_a_folder_of_runs_is_all_of_them(tmp_path):
    for number in range(3):
        written(tmp_path / f"runs/{number}", {"test": {"top1": {"value": number / 10}}})

    assert [p.value for p in measured(tmp_path / "runs")] == [0.0, 0.1, 0.2]


def test_a_run_that_measured_nothing_is_refused(tmp_path):
    with pytest.raises(RunError, match="has no top1 on test or val rows"):
        measured(written(tmp_path / "run", {}))


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        measured(tmp_path)
