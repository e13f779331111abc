"""A run folder belongs to one run, is finished when its record is there, and is never guessed at."""

from __future__ import annotations

import json

import pyarrow
import pytest
from pyarrow import parquet

from featurecache.errors import RunError
from featurecache.runs import is_done, open_run, read_run, read_trained, runs_below, write_record

CONFIG = {"head": "linear", "lr": 0.001, "features": {"backbone": {"name": "demo"}}}


def test_a_new_folder_is_taken_and_holds_the_config(tmp_path):
    out = tmp_path / "deep" / "run"

    assert not is_done(out, CONFIG)
    assert json.loads((out / "config.json").read_text()) == CONFIG


def test_an_empty_folder_is_taken(tmp_path):
    assert not is_done(tmp_path, CONFIG)


def test_a_run_is_done_when_its_record_is_written(tmp_path):
    is_done(tmp_path, CONFIG)
    assert not is_done(tmp_path, CONFIG), "stopped before its record, so it is done again"

    write_record(tmp_path, {"metrics": {}})

    assert is_done(tmp_path, CONFIG)
    assert read_run(tmp_path) == (CONFIG, {"metrics": {}})


def test_lists_and_tuples_are_the_same_setting(tmp_path):
    is_done(tmp_path, {"lambdas": (1.0, 2.0)})
    write_record(tmp_path, {})

    assert is_done(tmp_path, {"lambdas": [1.0, 2.0]})


@pytest.mark.parametrize("finished", [True, False])
def test_another_run_is_refused_naming_every_setting_that_differs(tmp_path, finished):
    is_done(tmp_path, CONFIG)
    if finished:
        write_record(tmp_path, {})
    other = {"head": "lfa", "lr": 0.001, "features": {"backbone": {"name": "vit"}}}

    with pytest.raises(RunError, match="holds another run") as refused:
        is_done(tmp_path, other)

    assert "features.backbone.name: that run has 'demo', this one 'vit'" in str(refused.value)
    assert "head: that run has 'linear', this one 'lfa'" in str(refused.value)
    assert "lr" not in str(refused.value)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")

    with pytest.raises(RunError, match="other files in it. Give another --out"):
        is_done(tmp_path, CONFIG)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")

    with pytest.raises(RunError, match="is a file, not a folder"):
        is_done(tmp_path / "run", CONFIG)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(RunError, match=r"cannot write the run .*run: Not a directory\. Give another --out"):
        is_done(tmp_path / "file" / "run", CONFIG)


def test_what_is_no_run_is_answered_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(RunError, match=r"is not a run folder .* featurecache train-head STORE --out"):
        read_run(tmp_path)


def test_an_unfinished_run_is_answered_with_what_finishes_it(tmp_path):
    is_done(tmp_path, CONFIG)

    with pytest.raises(RunError, match="did not finish. Run the same command again; it goes on"):
        read_run(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "record.json"])
def test_a_damaged_file_is_named(tmp_path, file):
    is_done(tmp_path, CONFIG)
    write_record(tmp_path, {})
    (tmp_path / file).write_text('{"head": ')

    with pytest.raises(RunError, match=f"{file} is damaged"):
        read_run(tmp_path)


def test_a_comparison_without_a_head_is_no_trained_run(tmp_path):
    write_record(tmp_path, {"results": []})
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(RunError, match="holds a comparison and no head. Train the one you want"):
        read_trained(tmp_path)


def test_a_comparison_names_the_runs_in_it_that_hold_a_head(tmp_path):
    for number in range(5):
        write_record(made(tmp_path / f"cells/linear/seed={number}"), {"class_names": []})
    write_record(made(tmp_path), {"lines": []})
    made(tmp_path / "cells/lora/unfinished")
    write_record(made(tmp_path / "cells/lora/headless"), {"lines": []})

    said = "Of the runs in it name one: cells/linear/seed=0, cells/linear/seed=1, cells/linear/seed=2 and 2 more."
    with pytest.raises(RunError, match=f"holds a comparison and no head. {said}"):
        read_trained(tmp_path)


def test_a_sweep_stands_for_what_it_tested(tmp_path):
    for place in ("swept/cells/rate=1", "swept/final/seed=0", "alone"):
        write_record(made(tmp_path / place), {"class_names": []})
    write_record(made(tmp_path / "swept"), {"final": []})

    assert runs_below(tmp_path) == [tmp_path / "alone", tmp_path / "swept"]
    assert runs_below(tmp_path / "swept") == [tmp_path / "swept/final/seed=0"]
    assert runs_below(tmp_path / "nowhere") == []


def made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


RECORD = {
    "head": "linear", "class_names": ["a", "b"],
    "metrics": {"test": {"top1": {"value": 0.75, "low": 0.5, "high": 0.9}, "recall": {"a": 1.0}}},
}  # fmt: skip


def test_an_opened_run_displays_its_metrics_and_no_text_of_it_is_html(tmp_path):
    is_done(tmp_path / "<b>run</b>", CONFIG)
    write_record(tmp_path / "<b>run</b>", RECORD)

    run = open_run(str(tmp_path / "<b>run</b>"))

    assert (run.config, run.record) == (CONFIG, RECORD)
    assert repr(run).splitlines()[0].endswith("<b>run</b>: head linear")
    assert repr(run).splitlines()[2].split() == ["test", "top1", "0.75", "0.5", "0.9"]
    assert "&lt;b&gt;run" in run._repr_html_() and "<b>" not in run._repr_html_()


def test_a_comparison_is_displayed_as_one(tmp_path):
    is_done(tmp_path, CONFIG)
    write_record(tmp_path, {"protocol": "holdout"})

    assert repr(open_run(tmp_path)) == f"run {tmp_path}: a comparison, without a head of its own"


def test_metrics_and_predictions_are_data_frames(tmp_path):
    pytest.importorskip("pandas")
    is_done(tmp_path, CONFIG)
    write_record(tmp_path, RECORD)

    with pytest.raises(RunError, match="holds no predictions: it had no rows to predict"):
        open_run(tmp_path).predictions()
    parquet.write_table(
        pyarrow.table({"sample_id": ["x"], "label": ["a"], "pred": ["b"]}), tmp_path / "predictions.parquet"
    )

    assert open_run(tmp_path).to_pandas().value.tolist() == [0.75]
    assert open_run(tmp_path).predictions().pred.tolist() == ["b"]
