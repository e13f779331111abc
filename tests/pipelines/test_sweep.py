"""A sweep trains every combination from one read, chooses on validation, and says all that it saw."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurecache.errors import ConfigError, RunError
from featurecache.features import FeatureBatch
from featurecache.sources.cached import CachedSource
from featurecache.stores import open_store
from heads import ridge
from heads._checkpoint import load_head
from pipelines.train_head import TrainHeadConfig, run
from pipelines.training import resuming
from pipelines.training.cells import sweep_values
from tests.pipelines.stores import made_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_store(tmp_path_factory.mktemp("stores") / "x.zarr", rows=300)


def config(store: Path, out: Path, sweep: Mapping[str, Any], **settings: Any) -> TrainHeadConfig:
    return TrainHeadConfig(store=store, out=out, sweep=sweep, quiet=True, **{"epochs": 4, "batch_size": 64, **settings})


def lines(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "sweep.csv").open()))


@pytest.mark.parametrize(("words", "values"), [
    ("1e-3,0.01", [1e-3, 0.01]), ("0.001..1/4", [0.001, 0.01, 0.1, 1.0]), (0.5, [0.5]), ([1, "0.1"], [1.0, 0.1]),
])  # fmt: skip
def test_values_are_listed_or_spaced_by_equal_ratios(store, words, values):
    assert sweep_values({"lr": words}, open_store(store).header, "linear") == {"lr": values}


def test_layers_and_tokens_may_each_have_their_turn_and_bars_part_values_with_commas(store):
    header = open_store(store).header

    found = sweep_values({"layer": "each", "token": "each", "wd": "0,0.1"}, header, "linear")

    assert found == {"layers": ["0", "1"], "tokens": ["cls", "mean"], "weight_decay": [0.0, 0.1]}
    assert sweep_values({"layers": "0|0,1|concat"}, header, "linear")["layers"] == ["0", "0,1", "concat"]


def test_options_of_the_head_are_swept_by_their_names(store):
    header = open_store(store).header

    assert sweep_values({"start": "ridge,published"}, header, "lfa") == {"start": ["ridge", "published"]}
    assert sweep_values({"bias": "true,false"}, header, "linear") == {"bias": [True, False]}


def test_everything_that_is_wrong_with_a_sweep_is_told_together(store, tmp_path):
    with pytest.raises(ConfigError) as refused:
        run(config(store, tmp_path / "run", {"lr": "fast", "wd": "1,1", "bais": "true"}))

    said = " ".join(refused.value.problems)
    assert "sweep lr=fast: could not convert string to float" in said
    assert "sweep wd=1,1: a value is there twice" in said
    assert "sweep bais: neither a setting to sweep nor an option of the head. Did you mean 'bias'?" in said
    assert not (tmp_path / "run").exists()


def test_the_chosen_head_is_the_one_that_is_trained_alone(store, tmp_path):
    sweep = {"lr": "1e-4..1e-1/4", "wd": "0,0.1", "layer": "each", "seed": "3,4"}
    record = run(config(store, tmp_path / "sweep", sweep)).record
    best = record["sweep"]["setting"]

    alone = run(config(
        store, tmp_path / "alone", {}, lr=best["lr"], weight_decay=best["weight_decay"], layers=best["layers"], seed=3,
    )).record  # fmt: skip

    one, other = (load_head(tmp_path / name)[0].state_dict() for name in ("sweep", "alone"))
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-5)
    assert record["metrics"]["test"]["top1"] == alone["metrics"]["test"]["top1"]
    assert record["best_epoch"] == alone["best_epoch"]


def test_every_cell_is_reported_and_the_best_mean_over_seeds_is_chosen(store, tmp_path):
    record = run(config(store, tmp_path / "run", {"lr": "1e-5,3e-2", "seed": "0,1,2"})).record

    found = lines(tmp_path / "run")

    assert len(found) == 6
    means = {lr: np.mean([float(line["val_top1"]) for line in found if float(line["lr"]) == lr]) for lr in (1e-5, 3e-2)}
    assert record["sweep"]["setting"] == {"lr": max(means, key=means.__getitem__)} == {"lr": 3e-2}
    assert [line["seed"] for line in found if line["chosen"] == "True"] == ["0", "1", "2"]
    assert [one["seed"] for one in record["sweep"]["repetitions"]] == [0, 1, 2]
    assert record["metrics"]["test"]["top1"]["value"] == record["sweep"]["repetitions"][0]["test_top1"]


def test_test_rows_decide_nothing(store, tmp_path, monkeypatch):
    seen: list[set[int]] = []
    batches = CachedSource.batches

    def noting(self, *arguments, **named):
        if named.get("order", "sequential") == "sequential" and not (tmp_path / "run/sweep.csv").exists():
            seen.append(set(self.rows.tolist()))
        return batches(self, *arguments, **named)

    monkeypatch.setattr(CachedSource, "batches", noting)
    run(config(store, tmp_path / "run", {"lr": "1e-3,1e-2", "layer": "each"}))

    test = set(np.flatnonzero(np.asarray(open_store(store).table().split) == "test").tolist())
    before_the_choice = [rows for rows in seen if not rows & test]
    assert seen[: len(before_the_choice)] == before_the_choice and len(before_the_choice) > 4


def test_heads_and_their_closed_forms_are_swept_together(store, tmp_path):
    record = run(config(store, tmp_path / "run", {"head": "linear,ridge,lfa", "seed": "0,1"})).record

    found = lines(tmp_path / "run")
    assert [line["head"] for line in found] == ["linear"] * 2 + ["ridge"] * 2 + ["lfa"] * 2
    assert found[2]["lambda_per_row"] == found[3]["lambda_per_row"] != ""
    assert found[2]["val_loss"] == found[3]["val_loss"]
    assert record["head"] == record["sweep"]["setting"]["head"]


def test_a_closed_form_that_a_sweep_shares_is_solved_once(store, tmp_path, monkeypatch):
    from heads import lfa

    solved = []
    solve = lfa.solve_ridge
    monkeypatch.setattr(lfa, "solve_ridge", lambda *given, **named: solved.append(1) or solve(*given, **named))

    run(config(store, tmp_path / "run", {"lr": "1e-4..1e-1/4", "seed": "0,1", "start": "ridge,probe"}, head="lfa"))

    assert len(solved) == 2


def test_cells_that_diverge_are_told_and_not_chosen(tmp_path):
    store = made_store(tmp_path / "x.zarr", "regression", rows=200)

    record = run(config(store, tmp_path / "run", {"lr": "1e-3,1e30"}, optimizer="sgd")).record

    assert record["sweep"]["setting"] == {"lr": 1e-3}
    assert [line["diverged_in_epoch"] != "" for line in lines(tmp_path / "run")] == [False, True]
    with pytest.raises(RunError, match="ceased to be a number"):
        run(config(store, tmp_path / "other", {"lr": "1e29,1e30"}, optimizer="sgd"))


def test_a_sweep_needs_validation_rows(tmp_path):
    store = made_store(tmp_path / "x.zarr", split=["train"] * 120)

    with pytest.raises(ConfigError, match="a sweep chooses on validation rows, and .* has none"):
        run(config(store, tmp_path / "run", {"lr": "1e-3,1e-2"}))
    assert run(config(store, tmp_path / "run", {"seed": "0,1"})).record["sweep"]["setting"] == {}


def test_refit_trains_on_train_and_val_what_validation_chose(store, tmp_path):
    plain = run(config(store, tmp_path / "plain", {"layer": "each"}, head="ridge")).record
    again = run(config(store, tmp_path / "again", {"layer": "each"}, head="ridge", refit=True)).record

    assert again["sweep"]["setting"] == plain["sweep"]["setting"]
    assert again["metrics"]["val"] == plain["metrics"]["val"], "measured before its rows were learnt from"
    table = open_store(store).table()
    both = np.flatnonzero(np.isin(np.asarray(table.split), ["train", "val"]))
    head, (array,) = load_head(tmp_path / "again")[0], plain["arrays"]
    features = torch.from_numpy(open_store(store).read(array, both).astype(np.float32).reshape(len(both), -1))
    batch = FeatureBatch(both, [], torch.from_numpy(np.asarray(table.target)[both]), {array: features})
    weight, bias = ridge.as_logits(ridge.solve_ridge(head.inputs, [batch], head.spec), "classification")
    torch.testing.assert_close(head.map.weight, weight.T.float())
    torch.testing.assert_close(head.map.bias, bias.float())


def test_a_repeated_sweep_does_nothing_and_a_stopped_one_goes_on_to_the_same_end(store, tmp_path, monkeypatch):
    sweep = {"lr": "1e-3,1e-2", "layer": "each"}
    run(config(store, tmp_path / "whole", sweep))
    monkeypatch.setattr(resuming, "SECONDS", 0.0)
    save, saved = resuming.Checkpoint.save, []

    def dying(self, training):
        save(self, training)
        saved.append(1)
        if len(saved) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resuming.Checkpoint, "save", dying)
        run(config(store, tmp_path / "stopped", sweep))
    assert (tmp_path / "stopped/checkpoint.pt").exists()

    run(config(store, tmp_path / "stopped", sweep))

    for name in ("head.safetensors", "predictions.parquet", "sweep.csv", "history.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (tmp_path / "stopped/checkpoint.pt").exists()
    assert run(config(store, tmp_path / "stopped", sweep)).repeated
    with pytest.raises(RunError, match="holds another run"):
        run(config(store, tmp_path / "stopped", {"lr": "1e-3,1e-2"}))


def test_the_report_shows_the_best_cells_and_the_deviation_over_seeds(store, tmp_path):
    report = run(config(store, tmp_path / "run", {"lr": "1e-3,1e-2", "seed": "0,1"}))

    first, spread, metrics = report.tables()

    assert first.title == "sweep" and first.notes[0].startswith("4 cells, all of them in sweep.csv")
    assert "over 2 seeds (mean, deviation)" in spread.notes[0]
    assert metrics.rows[-1][0] == "test"
    json.dumps(report.json())


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("1e-4..1e-1", "sweep lr=1e-4..1e-1: /COUNT is missing, .*: write 1e-4..1e-1/5"),
        ("1e-4..1e-1/", "COUNT must be a whole number of at least 2, got ''"),
        ("1e-4..1e-1/-3", "COUNT must be a whole number of at least 2, got '-3'"),
        ("1e-4..1e-1/2.5", "COUNT must be a whole number of at least 2, got '2.5'"),
        ("1e-4..1e-1/1", "a count of at least 2"),
        ("0..1e-1/5", "needs two positive numbers"),
        ("1e-4:1e-1", "a span is written FIRST..LAST/COUNT, such as 1e-4..1e-1/5"),
        ("1e-4..1e-1:5", "a span is written FIRST..LAST/COUNT"),
        ("1e-4 to 1e-1", "a span is written FIRST..LAST/COUNT"),
        ("1e-4 1e-3", "single values as V1,V2"),
        ("1e-4..", "a span is written FIRST..LAST/COUNT"),
        (["1e-4..1e-1"], "/COUNT is missing"),
        ("", "a value is empty: write NAME=V1,V2"),
        (None, "a value is empty"),
        ("1e-3,,1e-2", "a value is empty"),
    ],
)
def test_what_is_nearly_a_span_or_a_list_is_answered_with_what_to_write(store, words, match):
    with pytest.raises(ConfigError, match=match):
        sweep_values({"lr": words}, open_store(store).header, "linear")


@pytest.mark.parametrize("words", ["[1e-3,1e-2]", "(1e-3, 1e-2)", ["1e-3", "1e-2"], [1e-3, 1e-2], "1e-3 , 1e-2"])
def test_a_list_in_brackets_is_a_list(store, words):
    assert sweep_values({"lr": words}, open_store(store).header, "linear") == {"lr": [1e-3, 1e-2]}
