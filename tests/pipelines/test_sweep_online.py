"""Tuning online: cells that see no test, the best setting on both splits, and the same bits in whatever order."""

from __future__ import annotations

import json

import pytest

from featurecache.errors import ConfigError
from pipelines import train_online as module
from pipelines.inspect import InfoConfig, info
from pipelines.train_online import run
from tests.pipelines.online_samples import online, photos

SWEEP = {"peft": "lora", "peft_option": {"rank": 2}, "epochs": 1, "sweep": {"rate": "1e-2,1e-3"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("sweep") / "photos", each=8)


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("swept") / "run"
    return run(online(data, out, **SWEEP))


def test_cells_see_no_test_and_the_chosen_setting_is_trained_on_both_splits_and_tested_once(swept):
    cells = [json.loads(path.read_text()) for path in swept.folder.glob("cells/*/record.json")]
    (final,) = [json.loads(path.read_text()) for path in swept.folder.glob("final/*/record.json")]

    assert len(cells) == 2 and not any("test" in cell["metrics"] for cell in cells)
    assert final["rows"]["train"] == cells[0]["rows"]["train"] + cells[0]["rows"]["val"] and not final["rows"]["val"]
    assert swept.record["final"][0]["test"] == final["metrics"]["test"]["top1"]["value"]
    best = max(swept.record["settings"], key=lambda one: one["val"])
    assert swept.record["settings"][0]["val"] == best["val"]


def test_it_is_told_of(swept):
    titles = [table.title for table in info(InfoConfig(store=swept.folder)).tables()]

    assert titles == [f"comparison {swept.folder}", "settings, best first"]


def test_the_order_of_the_cells_moves_no_bit(data, swept, tmp_path):
    other = run(online(data, tmp_path / "run", **{**SWEEP, "sweep": {"rate": "1e-3,1e-2"}}))

    for name in ("rate=0.01", "rate=0.001"):
        for file in ("backbone.safetensors", "head.safetensors"):
            one, again = (report.folder / "cells" / name / file for report in (swept, other))
            assert one.read_bytes() == again.read_bytes()


def test_a_stopped_sweep_goes_on_at_the_cell_where_it_stood_and_a_finished_one_does_nothing(
    data, tmp_path, monkeypatch
):
    trained, real = [], module.train_online

    def stopping(plan, config, ranks):
        if len(trained) == 1:
            trained.append(None)
            raise KeyboardInterrupt
        trained.append(config.out.name)
        return real(plan, config, ranks)

    monkeypatch.setattr(module, "train_online", stopping)
    config = online(data, tmp_path / "run", **SWEEP)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    run(config)
    count = len(trained)

    assert trained == ["rate=0.01", None, "rate=0.001", "run"]
    assert run(config).repeated and len(trained) == count


def test_what_means_nothing_in_a_sweep_is_told_together(data, tmp_path):
    with pytest.raises(ConfigError) as refused:
        run(
            online(data, tmp_path / "run", peft="lora", sweep={"rnk": "1", "lr": "fast", "dropout": "0", "rate": "1,1"})
        )

    assert len(refused.value.problems) == 3
    assert "Did you mean" in str(refused.value) and "a value is there twice" in str(refused.value)


def test_fewer_rows_are_drawn_with_each_class_its_share(data, tmp_path):
    done = run(online(data, tmp_path / "run", rows=6, epochs=0)).record

    assert done["rows"]["train"] == 6


def test_cells_that_train_at_once_come_to_what_they_do_one_after_the_other(data, swept, tmp_path):
    together = run(online(data, tmp_path / "run", **SWEEP, jobs=2))

    values, seen = (
        {one["setting"]["rate"]: one["val"] for one in report.record["settings"]} for report in (swept, together)
    )
    assert seen == pytest.approx(values, abs=0.2)  # threads round otherwise, and a row may fall to the other side
    assert {path.parent.name for path in together.folder.glob("cells/*/record.json")} == {"rate=0.01", "rate=0.001"}
    assert run(online(data, tmp_path / "run", **SWEEP)).repeated


def test_jobs_without_a_sweep_or_without_a_number_are_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="jobs are cells of a sweep, and there is none"):
        online(data, tmp_path / "run", jobs=2)
    with pytest.raises(ConfigError, match="jobs must be positive, got 0"):
        online(data, tmp_path / "run", jobs=0, sweep={"rate": "1e-2,1e-3"})
