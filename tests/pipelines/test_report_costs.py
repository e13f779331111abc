"""A report shows what methods brought and what they cost, in the numbers of their records."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from pipelines.compare_peft import ComparePeftConfig
from pipelines.compare_peft import run as compare
from pipelines.report import ReportConfig
from pipelines.report import run as report
from pipelines.sections import Page, Run
from pipelines.sections.costs import MARKS, section
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
    assert rows[1][:4] == ("dtl", "dtl", "photos", "test top1") and rows[1][5] == "1536"
    assert all(b"<svg" in figure.svg for figure in found.figures)


def test_cached_runs_have_nothing_to_show_here(folder):
    run = Run.read(folder / "linear")
    cached = Run(run.folder, run.config, {name: value for name, value in run.record.items() if name != "costs"})

    assert section(Page([cached])) is None


def test_data_sets_are_drawn_apart(folder):
    run = Run.read(folder / "dtl")
    features = {**run.record["features"], "data": {**run.record["features"]["data"], "name": "others"}}
    other = Run(run.folder, run.config, {**run.record, "features": features})

    found = section(Page([run, other]))

    assert found is not None
    assert [figure.caption.partition(" over ")[0] for figure in found.figures[::2]] == [
        "top1 of photos",
        "top1 of others",
    ]


def test_no_two_of_many_methods_look_the_same():
    assert math.lcm(len(MARKS), 10) == 110 and len(set(MARKS)) == len(MARKS)


@pytest.mark.parametrize("seeds", ["0,1", "0"])
def test_a_comparison_is_drawn_by_its_means_with_intervals_over_seeds_or_over_the_rows_of_one(folder, tmp_path, seeds):
    compared = compare(ComparePeftConfig(
        data=(str(folder.parent / "photos"),), out=tmp_path / "table", backbone="timm:test_vit", weights="random:0",
        image_size=32, methods=("dtl",), seeds=seeds, setting={"epochs": 1, "batch_size": 8, "decode_threads": 1}, quiet=True,
    )).record  # fmt: skip

    written = report(ReportConfig(runs=(tmp_path / "table",), out=tmp_path / "page.html"))
    found = section(Page([], comparisons=[compared]))

    assert written.sections == ["Quality and cost"] and found is not None and len(found.figures) == 2
    for row, line in zip(found.tables[0].rows, compared["lines"], strict=True):
        kind = "seeds_" if "," in seeds else ""
        interval = f" [{line[f'{kind}low']:.4f}, {line[f'{kind}high']:.4f}]"
        assert (
            row[:2] == (f"mean of {len(seeds.split(','))}", line["method"])
            and row[4] == f"{line['mean']:.4f}{interval}"
        )


def test_runs_of_one_name_are_told_apart_by_the_folders_above_them(folder, tmp_path):
    for method in ("linear", "dtl"):
        shutil.copytree(folder / method, tmp_path / "cells" / method / "seed=0")

    report(ReportConfig(runs=(tmp_path / "cells",), out=tmp_path / "page.html"))

    page = (tmp_path / "page.html").read_text()
    assert "linear/seed=0" in page and "dtl/seed=0" in page


def test_a_sweep_over_images_stands_for_the_runs_that_it_tested(folder, tmp_path):
    sweep = {"rate": "1e-2,1e-3", "seed": "0,1"}
    train_online(online(folder.parent / "photos", tmp_path / "swept", peft="dtl", epochs=1, sweep=sweep))

    report(ReportConfig(runs=(tmp_path / "swept",), out=tmp_path / "page.html"))

    page = (tmp_path / "page.html").read_text()
    assert "seed=0" in page and "seed=1" in page and "rate=" not in page
