"""A report shows what methods brought and what they cost, in the numbers of their records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.sections import Page, Run
from pipelines.sections.costs import section
from pipelines.train_online import run as train_online
from tests.pipelines.online_samples import online, photos


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an online run of each of two methods."""
    place = tmp_path_factory.mktemp("costs")
    data = photos(place / "photos", each=8)
    for method in ("linear", "dtl"):
        train_online(online(data, place / "runs" / method, peft=method, epochs=1))
    return place / "runs"


def test_what_a_step_costs_is_in_the_record(folder):
    linear, dtl = (json.loads((folder / name / "record.json").read_text())["costs"] for name in ("linear", "dtl"))

    assert linear["saved_bytes"] == 0 < dtl["saved_bytes"]
    assert dtl["saved_bytes_per_block"][:4] == [0, 0, 0, 0]
    assert all(dtl["saved_bytes_per_block"][4:]) and len(dtl["saved_bytes_per_block"]) == 6
    assert sum(dtl["saved_bytes_per_block"]) < dtl["saved_bytes"]
    tokens, width, rank = 5, 64, 2
    assert dtl["multiply_adds"] - linear["multiply_adds"] == 6 * 2 * tokens * width * rank


def test_every_online_run_is_shown_with_its_quality_and_its_costs(folder):
    runs = [Run.read(folder / name) for name in ("linear", "dtl")]

    found = section(Page(runs))

    assert found is not None and len(found.figures) == 2
    (linear, dtl), rows = found.values, found.tables[0].rows
    assert (linear["trained"], dtl["trained"]) == (0, 6 * 2 * 64 * 2)
    assert dtl["measured"] == runs[1].record["metrics"]["test"]["top1"]
    assert rows[1][:3] == ("dtl", "dtl", "test top1") and rows[1][4] == "1536"
    assert all(b"<svg" in figure.svg for figure in found.figures)


def test_cached_runs_have_nothing_to_show_here(folder):
    run = Run.read(folder / "linear")
    cached = Run(run.folder, run.config, {name: value for name, value in run.record.items() if name != "costs"})

    assert section(Page([cached])) is None
