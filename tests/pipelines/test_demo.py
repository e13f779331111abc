"""The demo does the whole path once, and does nothing twice."""

from __future__ import annotations

import pytest

from pipelines.demo import DemoConfig, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "new"


@pytest.fixture(scope="module")
def report(folder):
    return run(DemoConfig(out=folder, quiet=True))


def test_every_layer_is_scored_and_the_last_ones_are_best(report):
    scores = report.ranked.json()

    assert {score["array"] for score in scores} == {"embedding", *(f"layers/cls/0{layer}" for layer in range(6))}
    assert scores[-1]["array"] == "layers/cls/00"


def test_the_heads_learn_and_lfa_is_no_worse_than_its_ridge_on_validation(report):
    accuracy = {r.record["head"]: r.record["metrics"]["val"]["top1"]["value"] for r in report.runs}

    assert set(accuracy) == {"linear", "ridge", "lfa"}
    assert min(accuracy.values()) > 0.93
    assert accuracy["lfa"] >= accuracy["ridge"]


def test_five_images_are_named_and_most_of_them_rightly(report):
    assert len(report.seen) == 5
    assert sum(true == predicted for _, true, predicted in report.seen) >= 4


def test_runs_are_named_where_they_are(report, folder):
    shown = [str(cell) for table in report.tables() for row in table.rows for cell in row]

    assert all(str(folder / head) in shown for head in ("linear", "ridge", "lfa"))


def test_a_second_demo_trains_nothing(report, folder):
    again = run(DemoConfig(out=folder, quiet=True))

    assert all(r.repeated for r in again.runs)
    assert again.extracted.was_finished
