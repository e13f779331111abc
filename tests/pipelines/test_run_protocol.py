"""Protocols carried out: what is chosen where, what is written, what a stopped and a repeated command do, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.errors import ConfigError, RunError
from featurecache.metrics import primary
from featurecache.runs import read_trained
from featurecache.sources.cached import CachedSource
from featurecache.stores import open_store
from pipelines.inspect import InfoConfig, info
from pipelines.run_protocol import RunProtocolConfig, run
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train_head
from pipelines.trialling import trialling
from pipelines.trialling.pairing import Outcome, drawn
from tests.pipelines.protocols.samples import balanced, splits, store_of
from tests.pipelines.stores import made_store

DOMAINS = [("art", "photo", "sketch")[row // 3 % 3] for row in range(90)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(
        tmp_path_factory.mktemp("stores") / "pets.zarr", balanced(90), split=splits(90), domain=DOMAINS,
        group=[f"g{row // 15}-{splits(90)[row]}-{DOMAINS[row]}" for row in range(90)],
    )  # fmt: skip


def config(protocol: str, stores: Path | tuple[Path, ...], out: Path, **settings: Any) -> RunProtocolConfig:
    stores = stores if isinstance(stores, tuple) else (stores,)
    return RunProtocolConfig(
        protocol=protocol, stores=stores, out=out, quiet=True, **{"epochs": 3, "batch_size": 32, **settings}
    )


def test_a_holdout_of_one_seed_is_what_train_head_measures(store, tmp_path):
    record = run(config("holdout?seed=0", store, tmp_path / "protocol", heads=("linear",))).record
    alone = train_head(TrainHeadConfig(store=store, out=tmp_path / "run", epochs=3, batch_size=32, quiet=True)).record

    (line,) = record["results"]
    assert line["mean"] == alone["metrics"]["test"]["top1"]["value"]
    folder = tmp_path / "protocol/trials/pets/linear/seed-0"
    assert json.loads((folder / "record.json").read_text())["metrics"]["test"] == alone["metrics"]["test"]
    assert (folder / "test/predictions.parquet").read_bytes() == (tmp_path / "run/predictions.parquet").read_bytes()
    told = info(InfoConfig(store=tmp_path / "protocol"))
    assert told.tables()[0].title.startswith("comparison") and told.json()["record"]["results"] == record["results"]
    with pytest.raises(RunError, match="holds a comparison and no head. Train the one you want"):
        read_trained(tmp_path / "protocol")


def test_which_arrays_heads_read_is_said_and_trials_that_read_others_are_not_mixed_in(tmp_path):
    asked = config(
        "holdout?seed=0,1", made_store(tmp_path / "pets.zarr"), tmp_path / "run", heads=("linear", "ridge", "lfa")
    )

    report = run(asked)

    assert report.record["remarks"][-1] == "read of pets: embedding by linear, ridge; cls/00, cls/01 by lfa"
    one = tmp_path / "run/trials/pets/ridge/seed-1/record.json"
    one.write_text(one.read_text().replace('"embedding"', '"layers/cls/01"'))
    with pytest.raises(RunError, match=r"seed-1 read layers/cls/01, and ridge reads embedding now. Give another --out"):
        run(asked)


def test_rows_are_kept_as_ids_and_lines_carry_the_full_name(store, tmp_path):
    run(config("few-shot:1,2?seed=1,2", store, tmp_path / "run", heads=("linear,ridge",)))

    table = open_store(store).table()
    ids = (tmp_path / "run/rows/pets/shots-2-seed-1/train.txt").read_text().split()
    labels = [int(table.target[list(table.sample_id).index(name)]) for name in ids]
    assert np.bincount(labels).tolist() == [2, 2, 2]
    lines = list(csv.DictReader((tmp_path / "run/results.csv").open()))
    assert {line["protocol"] for line in lines} == {"few-shot:1,2?seed=1,2"}
    assert [(line["shots"], line["head"], line["trials"]) for line in lines] == [
        ("1", "linear", "2"), ("1", "ridge", "2"), ("2", "linear", "2"), ("2", "ridge", "2"),
    ]  # fmt: skip
    latex = (tmp_path / "run/results.tex").read_text()
    assert latex.startswith("% few-shot:1,2?seed=1,2: top1 in percent") and r"\mathbf" in latex and r"\pm" in latex
    assert (tmp_path / "run/curve.png").read_bytes()[1:4] == b"PNG" and b"<svg" in (
        tmp_path / "run/curve.svg"
    ).read_bytes()


def test_means_and_deviations_are_those_of_the_trials_and_intervals_hold_them(store, tmp_path):
    report = run(config("holdout?folds=3&seed=1,2", store, tmp_path / "run", heads=("linear,ridge",)))

    for line in report.record["results"]:
        values = [one["top1"] for one in report.record["trials"] if one["head"] == line["head"]]
        assert len(values) == 6
        assert line["mean"] == pytest.approx(np.mean(values)) and line["deviation"] == pytest.approx(
            np.std(values, ddof=1)
        )
        assert line["low"] <= line["mean"] <= line["high"] and line["trials_low"] < line["mean"] < line["trials_high"]
    (gap,) = report.record["differences"]
    one, other = report.record["results"]
    assert (
        gap["difference"] == pytest.approx(other["mean"] - one["mean"])
        and gap["low"] <= gap["difference"] <= gap["high"]
    )
    assert [table.title for table in report.tables()][:2] == [
        "holdout?folds=3&seed=1,2", "top1 above linear (paired bootstrap, the same draws for both)",
    ]  # fmt: skip


def test_a_paired_difference_of_equal_heads_is_surely_nothing_where_their_own_intervals_are_wide():
    keys, hits = np.repeat(np.arange(20), 3), np.random.default_rng(0).integers(0, 2, 60).astype(float)
    outcome = Outcome(keys.astype(str), hits, None)

    values = drawn([[outcome, outcome]])

    assert values.shape == (1001, 1, 2) and values[0, 0, 0] == pytest.approx(hits.mean())
    np.testing.assert_array_equal(values[:, 0, 0], values[:, 0, 1])
    of_groups = hits.reshape(20, 3).mean(1)
    assert values[1:, 0, 0].std() == pytest.approx(of_groups.std() / np.sqrt(20), rel=0.1), "by groups, not by rows"


def test_no_test_row_is_read_before_the_setting_is_chosen(store, tmp_path, monkeypatch):
    events: list[Any] = []
    batches, choose = CachedSource.batches, trialling.chosen

    def noting(self, *arguments, **named):
        events.append(set(self.rows.tolist()))
        return batches(self, *arguments, **named)

    monkeypatch.setattr(CachedSource, "batches", noting)
    monkeypatch.setattr(trialling, "chosen", lambda *given: events.append("chosen") or choose(*given))
    run(config("holdout?seed=0", store, tmp_path / "run", sweep={"lr": "1e-3,1e-2"}))

    test = set(np.flatnonzero(np.asarray(open_store(store).table().split) == "test").tolist())
    at = events.index("chosen")
    assert at > 3 and not any(rows & test for rows in events[:at])
    assert all(rows == test for rows in events[at + 1 :]) and len(events) > at + 1


def test_a_sweep_is_chosen_from_in_every_trial(store, tmp_path):
    run(config("holdout?folds=2&seed=1", store, tmp_path / "run", sweep={"lr": "1e-6,3e-2"}))

    for path in (tmp_path / "run/trials/pets/linear").glob("*/record.json"):
        record = json.loads(path.read_text())
        values = {one["lr"]: one["value"] for one in record["candidates"]}
        assert len(values) == 2 and values[record["setting"]["lr"]] == max(values.values())


def test_domains_are_left_out_under_every_rule_each_choosing_from_the_drawn_settings(store, tmp_path):
    rules = "training-domain,leave-one-out,oracle"
    text = f"leave-one-domain-out?select={rules}&trials=1&settings=3"

    record = run(config(text, store, tmp_path / "run")).record

    assert [(line["select"], line["target"]) for line in record["results"]] == [
        (rule, domain) for domain in ("art", "photo", "sketch") for rule in rules.split(",")
    ]  # fmt: skip
    folder = tmp_path / "run/trials/pets/linear"
    one = json.loads((folder / "leave-one-out-target-0-trial-0/record.json").read_text())
    judged = [
        json.loads((folder / "judged" / f"without-0-{other}-trial-0--whole-{other}.json").read_text())
        for other in (1, 2)
    ]
    means = np.mean(judged, axis=0)
    assert [candidate["value"] for candidate in one["candidates"]] == pytest.approx(means.tolist())
    assert one["setting"]["hparams_seed"] == int(means.argmax()) and one["rows"]["target"] == 30
    assert len({candidate["lr"] for candidate in one["candidates"]}) == 3


def test_reference_roles_train_with_the_drawn_momentum_and_batch(tmp_path):
    store = store_of(tmp_path / "x.zarr", balanced(90), split=splits(90), domain=DOMAINS)
    text = "leave-one-domain-out?roles=reference&trials=1&settings=2"

    run(config(text, store, tmp_path / "run"))

    path = tmp_path / "run/trials/x/linear/training-domain-target-1-trial-0/record.json"
    first, second = json.loads(path.read_text())["candidates"]
    assert (first["lr"], first["momentum"], first["batch_size"], first["optimizer"]) == (1e-3, 0.1, 64, "sgd")
    assert second["lr"] != first["lr"] and second["schedule"] == "constant"


def test_new_classes_are_asked_of_the_head_that_learnt_the_others(tmp_path):
    names = ("ant", "bee", "cow", "dog")
    store = store_of(tmp_path / "x.zarr", balanced(120, 4), split=splits(120, 4), class_names=names, text=True)

    record = run(config("base-to-new:4?seed=1,2", store, tmp_path / "run", heads=("clip_adapter,zero_shot",))).record

    found = {(line["head"], line["test"]): line["mean"] for line in record["results"]}
    assert {test for _, test in found} == {"base", "new", "harmonic mean"}
    assert found["zero_shot", "new"] > 0.6, "the texts are the centres of the classes"
    assert found["zero_shot", "harmonic mean"] == pytest.approx(
        2 / (1 / found["zero_shot", "base"] + 1 / found["zero_shot", "new"])
    )
    with pytest.raises(ConfigError, match="clip_linear learns values of its classes, so it cannot be asked for others"):
        run(config("base-to-new:4?seed=1", store, tmp_path / "other", heads=("clip_linear",)))
    assert not (tmp_path / "other").exists()


def test_a_head_goes_to_other_data_of_the_same_features(tmp_path):
    first = store_of(tmp_path / "a.zarr", balanced(90), split=splits(90))
    second = store_of(tmp_path / "b.zarr", balanced(60), split=splits(60), class_names=("ant", "bee", "yak"))

    record = run(config("cross-data-set?seed=1", (first, second), tmp_path / "run", lr=0.03, epochs=20)).record

    found = {line["test"]: line["mean"] for line in record["results"]}
    assert set(found) == {"own", "b"} and min(found.values()) > 0.6


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_folds_of_other_tasks_have_intervals_of_their_metric(tmp_path, task):
    store = made_store(tmp_path / "x.zarr", task)

    record = run(config("holdout?folds=2&seed=0", store, tmp_path / "run", heads=("linear,ridge",), epochs=2)).record

    assert record["metric"] == primary(task)
    for line in record["results"]:
        values = [one[primary(task)] for one in record["trials"] if one["head"] == line["head"]]
        assert line["mean"] == pytest.approx(np.mean(values), abs=1e-6) and line["low"] <= line["high"]


def test_a_repeated_command_does_nothing_and_a_stopped_one_goes_on_trial_by_trial(store, tmp_path, monkeypatch):
    text = "leave-one-domain-out?select=training-domain,leave-one-out&trials=1&settings=2"
    whole = run(config(text, store, tmp_path / "whole")).record
    train, count = trialling.train_cells, []

    def stopping(*arguments, **named):
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt
        return train(*arguments, **named)

    monkeypatch.setattr(trialling, "train_cells", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(config(text, store, tmp_path / "stopped"))
    before = len(count)
    again = run(config(text, store, tmp_path / "stopped")).record

    assert again["results"] == whole["results"] and again["trials"] == whole["trials"]
    assert len(count) - before == 2, "3 pairs and 3 targets in all: 4 were done"
    assert run(config(text, store, tmp_path / "stopped")).repeated and len(count) - before == 2
    with pytest.raises(RunError, match="holds another run"):
        run(config("holdout", store, tmp_path / "stopped"))


@pytest.mark.parametrize(("text", "message"), [
    ("leave-one-domain-out?select=test", "selection never sees test rows"),
    ("holdout?test=dev", "has no split 'dev'"),
    ("few-shot:64", "too few images for 64 of every class"),
    ("few-shot:0", "shots must be positive"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(store, tmp_path, text, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        run(config(text, store, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_heads_that_do_not_fit_are_refused_together(store, tmp_path):
    with pytest.raises(ConfigError, match="no head of linear has an option 'bais'"):
        run(config("holdout", store, tmp_path / "run", head_option={"bais": True}))
    with pytest.raises(ConfigError, match="a head is named twice"):
        config("holdout", store, tmp_path / "run", heads=("linear,ridge", "linear"))
    with pytest.raises(ConfigError, match="the protocol draws lr_factor itself: leave it out of --sweep"):
        run(config("leave-one-domain-out?trials=1", store, tmp_path / "run", sweep={"lr": "1e-3,1e-2"}))
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges_leaves_nothing_half_written(store, tmp_path):
    with pytest.raises(RunError, match="ceased to be a number"):
        run(config("holdout", store, tmp_path / "run", optimizer="sgd", lr=1e30))
    assert not (tmp_path / "run").exists()


def test_all_heads_are_those_that_any_store_feeds_with_the_baseline_first():
    named = RunProtocolConfig(protocol="holdout", stores=(Path("a.zarr"),), out=Path("b"), heads=("all",)).named_heads

    assert named[0] == "linear" and len(named) == len(set(named))
    assert {"lfa", "ridge", "knn", "logistic"} <= set(named)
    assert not {"all", "attentive", "zero_shot", "lfa_clip", "clip_linear"} & set(named)
