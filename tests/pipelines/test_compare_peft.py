"""Methods side by side: one table, costs beside accuracy, resumable cell by cell."""

from __future__ import annotations

import json
import shutil

import pytest

from featurecache.errors import ConfigError, RunError
from featurecache.runs import read_run
from pipelines import compare_peft as module
from pipelines.compare_peft import ComparePeftConfig, CompareReport, run
from pipelines.export_backbone import ExportBackboneConfig
from pipelines.export_backbone import run as export
from pipelines.inspect import InfoConfig, info
from tests.pipelines.online_samples import photos

SETTING = {"epochs": 1, "batch_size": 8, "decode_threads": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("compare") / "photos", each=8)


def config(data, out, **changes):
    given = {"methods": ("lora",), "seeds": "0,1", "setting": SETTING, "option": {"lora.rank": 2}, **changes}
    return ComparePeftConfig(
        data=(str(data),), out=out, backbone="timm:test_vit", weights="random:0", image_size=32, quiet=True, **given
    )


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    return run(config(data, tmp_path_factory.mktemp("compared") / "run"))


def test_every_method_has_its_accuracy_over_seeds_beside_what_it_costs(compared):
    lines = {line["method"]: line for line in compared.record["lines"]}

    assert set(lines) == {"linear", "lora"}
    assert lines["linear"]["difference"] == 0 and lines["linear"]["saved_bytes"] == 0
    assert lines["lora"]["trained"] == 6 * (2 * 64 + 2 * 192) and lines["lora"]["saved_bytes"] > 0
    assert all(line["half_width"] is not None and line["step_seconds"] > 0 for line in lines.values())
    assert len(json.loads(lines["lora"]["values"])) == 2
    assert [row[0] for row in compared.tables()[0].rows] == [line["method"] for line in compared.record["lines"]]


def test_means_and_differences_have_intervals_over_rows_and_over_seeds_within_what_an_accuracy_can_be(compared):
    lines = {line["method"]: line for line in compared.record["lines"]}
    table = compared.tables()[0]
    shown = {row[0]: row for row in table.rows}

    assert table.columns[1:7] == (
        "top1",
        "95 % over rows",
        "95 % over seeds",
        "to linear",
        "95 % over rows",
        "95 % over seeds",
    )
    for line in lines.values():
        assert 0 <= line["low"] <= line["mean"] <= line["high"] <= 1 and line["low"] < line["high"]
        assert 0 <= line["seeds_low"] <= line["mean"] <= line["seeds_high"] <= 1
    lora = lines["lora"]
    assert -1 <= lora["difference_low"] <= lora["difference"] <= lora["difference_high"] <= 1
    assert shown["lora"][5] == f"[{lora['difference_low']:+.4f}, {lora['difference_high']:+.4f}]"
    assert (shown["linear"][5], shown["linear"][6]) == ("", "")


def test_one_seed_has_the_interval_over_rows(data, tmp_path):
    report = run(config(data, tmp_path / "run", seeds="0"))

    table, lines = report.tables()[0], {line["method"]: line for line in report.record["lines"]}
    assert table.columns[:5] == ("method", "top1", "95 % over rows", "to linear", "95 % over rows")
    for row in table.rows:
        line = lines[row[0]]
        own = read_run(tmp_path / "run" / "cells/photos" / row[0] / "seed=0")[1]["metrics"]["test"]["top1"]
        assert row[2] == f"[{line['low']:.4f}, {line['high']:.4f}]" and line["half_width"] is None
        assert (line["low"], line["high"]) == pytest.approx((own["low"], own["high"]))


def test_a_comparison_of_an_older_version_still_has_its_table(compared):
    new = ("low", "high", "seeds_low", "seeds_high")
    lines = [
        {name: value for name, value in line.items() if name.removeprefix("difference_") not in new}
        for line in compared.record["lines"]
    ]

    table = CompareReport(compared.folder, {**compared.record, "lines": lines}).tables()[0]

    half, mean = lines[0]["half_width"], lines[0]["mean"]
    assert table.rows[0][2:4] == ("", f"[{mean - half:.4f}, {mean + half:.4f}]")


def test_only_cells_that_are_not_there_are_trained(data, compared, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(compared.folder, folder)
    for gone in ("record.json", "cells/photos/lora/seed=1/record.json"):
        (folder / gone).unlink()
    trained, real = [], module.train
    monkeypatch.setattr(module, "train", lambda cell: trained.append(real(cell).repeated))

    again = run(config(data, folder))

    assert trained.count(False) == 1 and trained.count(True) == 3
    assert [line["mean"] for line in again.record["lines"]] == [line["mean"] for line in compared.record["lines"]]
    assert run(config(data, folder)).repeated


def test_images_that_were_moved_are_the_same_and_others_of_their_name_are_not(data, compared, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(compared.folder, folder)
    moved = shutil.copytree(data, tmp_path / "elsewhere" / data.name)

    again = run(config(moved, folder))

    assert [line["mean"] for line in again.record["lines"]] == [line["mean"] for line in compared.record["lines"]]
    next(moved.rglob("*.png")).unlink()
    with pytest.raises(RunError, match="fingerprint: that run has"):
        run(config(moved, folder))


def test_a_comparison_grows_by_methods_and_seeds_and_keeps_its_cells(data, compared, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(compared.folder, folder)
    trained, real = [], module.train
    monkeypatch.setattr(module, "train", lambda cell: trained.append(real(cell).repeated))

    grown = run(config(data, folder, methods=("lora", "bitfit"), seeds="1,2"))

    assert {line["method"] for line in grown.record["lines"]} == {"linear", "lora", "bitfit"}
    assert trained.count(True) == 2 and trained.count(False) == 4
    kept, new = (json.loads(line["values"]) for one in (compared, grown) for line in one.record["lines"]
                 if line["method"] == "lora")  # fmt: skip
    assert kept[1] == new[0] and len(new) == 2


def test_what_later_cells_would_be_refused_for_is_told_before_the_first_is_trained(data, tmp_path):
    with pytest.raises(ConfigError) as refused:
        run(config(data, tmp_path / "run", methods=("lora", "dtl"), option={"lora.rnk": 1, "ssf.rank": 2}))

    assert len(refused.value.problems) == 2 and "Did you mean 'rank'" in str(refused.value)
    with pytest.raises(ConfigError, match="photos, lora: rank must lie in 1..64"):
        run(config(data, tmp_path / "run", option={"lora.rank": 1000}))
    with pytest.raises(ConfigError, match="setting seed is what the command itself says"):
        run(config(data, tmp_path / "run", setting={"seed": 3}))
    assert not (tmp_path / "run").exists()


def test_a_setting_with_a_dot_is_an_entry_of_options(data, tmp_path):
    setting = {**SETTING, "head_option.start": "ridge"}

    cells, _ = module.cells_of(config(data, tmp_path / "run", setting=setting))

    assert {tuple(cell.config.head_option.items()) for cell in cells} == {(("start", "ridge"),)}
    with pytest.raises(ConfigError, match="setting peft_option is what the command itself says"):
        module.cells_of(config(data, tmp_path / "run", setting={"peft_option.rank": 2}))


def test_seeds_are_numbers_each_once(data, tmp_path):
    with pytest.raises(ConfigError, match="seeds must be whole numbers"):
        config(data, tmp_path, seeds="0,one")
    with pytest.raises(ConfigError, match="a seed is there twice"):
        config(data, tmp_path, seeds="0,0")


def test_cells_that_train_at_once_are_the_same_cells(data, compared, tmp_path):
    together = run(config(data, tmp_path / "run", jobs=2))

    assert together.record["asked"] == compared.record["asked"]
    places = [{str(path.relative_to(one.folder)) for path in one.folder.glob("cells/**/record.json")}
              for one in (compared, together)]  # fmt: skip
    assert places[0] == places[1]
    assert run(config(data, tmp_path / "run")).repeated
    with pytest.raises(ConfigError, match="jobs must be positive"):
        config(data, tmp_path / "other", jobs=0)


def test_it_is_told_of_and_its_folder_is_no_run_of_a_head(compared, tmp_path):
    facts = info(InfoConfig(store=compared.folder))

    assert [table.title for table in facts.tables()][:2] == [f"comparison {compared.folder}", "photos"]
    assert facts.json()["record"]["lines"] == compared.record["lines"]
    with pytest.raises(RunError, match="Of the runs in it name one: cells/photos/linear/seed=0"):
        export(ExportBackboneConfig(run_folder=compared.folder, out=tmp_path / "x.safetensors"))
