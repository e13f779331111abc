"""A run of a head: what its folder holds, what it refuses before anything is written, and that it needs no image."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import timm
import torch
from sklearn.linear_model import RidgeClassifier

from featurecache.errors import ConfigError, RunError
from featurecache.provenance import PROVENANCE
from featurecache.sources.cached import CachedSource
from featurecache.stores import open_store
from heads import HEADS
from heads._checkpoint import load_head
from pipelines._rows import class_weights, labelled_rows
from pipelines.train_head import TrainHeadConfig, planned, run
from tests.pipelines.stores import CONSTANT, made_store, split_of, targets_of

OF_IMAGES = [
    name
    for name in HEADS.names()
    if HEADS.load(name).CONSUMES in ("last", "all") and not hasattr(HEADS.load(name), "CONSTANTS")
]
"""Heads that need no text side."""
FILES = [
    "config.json", "head.json", "head.safetensors", "history.jsonl", "predictions.parquet", "record.json", "training_rows.parquet",
]  # fmt: skip


def config(store: Path, out: Path, **settings: Any) -> TrainHeadConfig:
    return TrainHeadConfig(store=store, out=out, quiet=True, **{"epochs": 2, **settings})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def predictions(folder: Path) -> dict[str, list]:
    return pyarrow.parquet.read_table(folder / "predictions.parquet").to_pydict()


@pytest.fixture(scope="module")
def ridge_run(digits_store, tmp_path_factory) -> Path:
    """Return the folder of a ridge over the last layer's cls of the digits."""
    out = tmp_path_factory.mktemp("runs") / "ridge"
    run(config(digits_store, out, head="ridge"))
    return out


@pytest.fixture
def no_backbones(monkeypatch):
    """Make every way to build a model, or to open a data set, raise."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("stage two built a backbone or opened images")

    monkeypatch.setattr(timm, "create_model", refuse)
    for place in ("featurecache.backbones.load_backbone", "save_features.load_backbone",
                  "featurecache.datasets.open_dataset", "save_features.open_dataset", "PIL.Image.open"):  # fmt: skip
        monkeypatch.setattr(place, refuse)


@pytest.mark.parametrize("head", OF_IMAGES)
def test_it_works_without_images_and_without_models(digits_store, tmp_path, no_backbones, head):
    report = run(config(digits_store, tmp_path / "run", head=head, epochs=30))

    assert not (digits_store.parent / "images").exists()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
    assert report.record["metrics"]["test"]["top1"]["value"] > 0.5


def test_the_record_says_what_was_made_of_what(digits_store, ridge_run):
    record, header = json.loads((ridge_run / "record.json").read_text()), open_store(digits_store).header

    assert record["features"]["backbone"] == json.loads(json.dumps(dict(header.backbone)))
    assert record["features"]["data"] == dict(header.dataset)
    assert record["features"]["origin"]["name"] == "demo"
    assert record["arrays"] == ["layers/cls/05"]
    assert record["class_names"] == [f"digit {number}" for number in range(10)]
    assert record["selected_by"] == "val top1"
    assert record["parameters"] == 1290 and record["trained_parameters"] == 0
    assert record["closed_form"]["lambda_per_row"] > 0
    assert record["environment"]["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert record["seconds"] > 0


def test_the_config_is_written_as_it_was_resolved(digits_store, tmp_path):
    run(config(digits_store, tmp_path / "run", tokens="mean", layers="4-5", device="cpu"))

    written = json.loads((tmp_path / "run/config.json").read_text())
    assert written["lr"] == HEADS.load("linear").LEARNING_RATE
    assert (written["arrays"], written["combine"]) == (["layers/mean/04", "layers/mean/05"], "concat")
    assert written["features"]["data"]["fingerprint"] == open_store(digits_store).header.dataset["fingerprint"]


def test_metrics_are_those_of_scikit_learn_on_the_rows_of_the_split(digits_store, ridge_run):
    store, record = open_store(digits_store), json.loads((ridge_run / "record.json").read_text())
    train, test = labelled_rows(store, "train"), labelled_rows(store, "test")
    features = store.to_numpy("layers/cls/05").astype(np.float64)
    targets = np.asarray(store.table().target)
    features = (features - features[train].mean(0)) / features[train].std(0)

    model = RidgeClassifier(alpha=record["closed_form"]["lambda_per_row"] * len(train))
    accuracy = model.fit(features[train], targets[train]).score(features[test], targets[test])

    assert record["metrics"]["test"]["top1"]["value"] == pytest.approx(accuracy)
    assert record["rows"] == {split: len(labelled_rows(store, split)) for split in ("train", "val", "test")}


def test_predictions_are_those_of_the_test_split_and_agree_with_the_metrics(digits_store, ridge_run):
    found, record = predictions(ridge_run), json.loads((ridge_run / "record.json").read_text())
    store = open_store(digits_store)

    assert list(found) == ["sample_id", "label", "pred", *(f"prob_digit {number}" for number in range(10))]
    assert found["sample_id"] == list(np.asarray(store.table().sample_id)[labelled_rows(store, "test")])
    assert all(name.startswith(label) for name, label in zip(found["sample_id"], found["label"], strict=True))
    chances = np.array([found[f"prob_digit {number}"] for number in range(10)])
    np.testing.assert_allclose(chances.sum(0), 1, rtol=1e-5)
    assert [f"digit {best}" for best in chances.argmax(0)] == found["pred"]
    right = np.mean([a == b for a, b in zip(found["label"], found["pred"], strict=True)])
    assert record["metrics"]["test"]["top1"]["value"] == pytest.approx(right)


def test_without_a_test_split_val_is_the_test_and_a_tenth_of_train_is_chosen_on(tmp_path):
    split = ["val" if row % 4 == 0 else "train" for row in range(120)]
    store = made_store(tmp_path / "x.zarr", split=split)

    report = run(config(store, tmp_path / "run"))

    assert list(report.record["metrics"]) == ["val", "test"]
    assert report.record["splits"]["test"] == "val"
    assert report.record["rows"]["train"] + report.record["rows"]["val"] == 90 and report.record["rows"]["test"] == 30
    assert predictions(tmp_path / "run")["sample_id"] == [f"{row}.jpg" for row in range(0, 120, 4)]


def test_with_training_rows_alone_the_last_values_are_kept(tmp_path):
    store = made_store(tmp_path / "x.zarr", split=["train"] * 120)

    report = run(config(store, tmp_path / "run", epochs=3))

    assert report.record["metrics"] == {}
    assert report.record["best_epoch"] == 3
    assert not (tmp_path / "run/predictions.parquet").exists()
    assert report.tables()[0].rows == []


def test_the_history_has_a_line_an_epoch_in_plain_json(digits_store, tmp_path):
    run(config(digits_store, tmp_path / "run", epochs=3))

    lines = (tmp_path / "run/history.jsonl").read_text().splitlines()
    history = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3]
    assert history[3]["train_loss"] < history[1]["train_loss"]


def test_a_training_that_diverges_is_refused_and_leaves_nothing(tmp_path):
    store = made_store(tmp_path / "x.zarr", "regression")

    with pytest.raises(
        RunError, match=r"the loss ceased to be a number \(in epoch 2, learning rate 1e\+30\).* lower --lr"
    ):
        run(config(store, tmp_path / "run", lr=1e30, optimizer="sgd", epochs=4))

    assert not (tmp_path / "run").exists()


def test_an_identical_command_does_nothing_and_says_so(digits_store, ridge_run):
    before = content(ridge_run)

    report = run(config(digits_store, ridge_run, head="ridge"))

    assert report.repeated
    assert report.tables()[0].notes == [f"{ridge_run}: this run is there already: nothing to do"]
    assert content(ridge_run) == before


@pytest.mark.parametrize("same", [{"lr": 1e-3}, {"layers": "last"}, {"layers": "5", "tokens": "cls"}])
def test_saying_what_would_be_chosen_anyway_is_the_identical_command(digits_store, tmp_path, same):
    run(config(digits_store, tmp_path / "run"))

    assert run(config(digits_store, tmp_path / "run", **same)).repeated


@pytest.mark.parametrize(
    ("other", "named"), [({"seed": 1}, "seed: that run has 0, this one 1"), ({"layers": "3"}, "arrays: that run has")]
)
def test_other_settings_into_the_same_folder_are_refused_and_nothing_is_overwritten(
    digits_store, ridge_run, other, named
):
    before = content(ridge_run)

    with pytest.raises(RunError, match="holds another run") as refused:
        run(config(digits_store, ridge_run, head="ridge", **other))

    assert named in str(refused.value)
    assert content(ridge_run) == before


def test_features_of_another_backbone_are_another_run(tmp_path):
    first, second = made_store(tmp_path / "a.zarr"), made_store(tmp_path / "b.zarr", "regression")
    run(config(first, tmp_path / "run"))
    shutil.rmtree(first)
    second.rename(first)

    with pytest.raises(
        RunError, match="features.data.fingerprint: that run has 'classification', this one 'regression'"
    ):
        run(config(first, tmp_path / "run"))


def test_a_run_that_was_stopped_is_done_again_and_ends_the_same(digits_store, tmp_path):
    run(config(digits_store, tmp_path / "run"))
    whole = content(tmp_path / "run")
    for name in ("record.json", "head.safetensors"):
        (tmp_path / "run" / name).unlink()

    assert not run(config(digits_store, tmp_path / "run")).repeated

    again = content(tmp_path / "run")
    assert {k: v for k, v in again.items() if k != "record.json"} == {
        k: v for k, v in whole.items() if k != "record.json"
    }


def test_the_head_in_the_folder_is_the_one_that_was_measured(digits_store, ridge_run):
    store, (head, spec) = open_store(digits_store), load_head(ridge_run)
    rows = labelled_rows(store, "test")

    with torch.inference_mode():
        logits = head({"layers/cls/05": torch.from_numpy(store.read("layers/cls/05", rows).astype(np.float32))})

    assert dict(spec.shapes) == {"layers/cls/05": (128,)}
    assert [f"digit {best}" for best in logits.argmax(1)] == predictions(ridge_run)["pred"]


def test_seeds_fix_the_values_and_the_callers_generator_is_left_alone(tmp_path):
    store = made_store(tmp_path / "x.zarr")
    state = torch.random.get_rng_state()

    for number, seed in enumerate((0, 0, 1)):
        run(config(store, tmp_path / str(number), seed=seed))

    values = [(tmp_path / str(number) / "head.safetensors").read_bytes() for number in range(3)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("changed", [
    {"batch_size": 16}, {"epochs": 3}, {"lr": 0.02}, {"weight_decay": 5.0}, {"optimizer": "sgd"}, {"momentum": 0.1},
    {"schedule": "constant"}, {"label_smoothing": 0.3}, {"class_weights": "balanced"}, {"standardise": False},
    {"least_lr": 0.04}, {"nesterov": True}, {"clip_norm": 1e-3}, {"seed": 1}, {"data_seed": 1}, {"tokens": "mean"}, {"layers": "0"}, {"head_option": {"bias": False}},
], ids=lambda changed: next(iter(changed)))  # fmt: skip
def test_every_setting_is_heeded(tmp_path, changed):
    store = made_store(tmp_path / "x.zarr", split=["train"] * 120)
    base = {
        "lr": 0.05,
        "batch_size": 40,
        "optimizer": "sgd" if changed.keys() & {"momentum", "nesterov", "clip_norm"} else "adamw",
    }

    run(config(store, tmp_path / "base", **base))
    run(config(store, tmp_path / "changed", **{**base, **changed}))

    one, other = (load_head(tmp_path / name)[0].map.weight for name in ("base", "changed"))
    assert one.shape != other.shape or not torch.allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize(("asked", "fits", "order"), [
    ("auto", True, "shuffled"), ("auto", False, "blocks"), ("shuffled", False, "shuffled"), ("blocks", True, "blocks"),
])  # fmt: skip
def test_the_order_of_the_rows_is_the_one_asked_for_and_else_goes_by_size(tmp_path, monkeypatch, asked, fits, order):
    store, read = made_store(tmp_path / "x.zarr"), []
    batches = CachedSource.batches
    monkeypatch.setattr(CachedSource, "fits_memory", lambda self: fits)
    monkeypatch.setattr(
        CachedSource,
        "batches",
        lambda self, *a, **k: read.append(k.get("order", "sequential")) or batches(self, *a, **k),
    )

    run(config(store, tmp_path / "run", order=asked))

    assert set(read) == {"sequential", order}


@pytest.mark.parametrize("head", OF_IMAGES)
@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_every_head_learns_every_task_from_layers_of_unequal_width_and_constant_features(tmp_path, head, task):
    store = made_store(tmp_path / "x.zarr", task)
    settings = {
        "head": head,
        "layers": "concat",
        "tokens": "cls+mean",
        "epochs": 60,
        "lr": 0.01 if HEADS.load(head).LEARNING_RATE else None,
    }

    try:
        report = run(config(store, tmp_path / "run", **settings))
    except ConfigError as refused:
        assert task in str(refused), f"{head} refuses {task} without naming it: {refused}"
        pytest.skip(f"{head} says that it cannot do {task}")

    metric, chance = {
        "classification": ("top1", 0.5),
        "multilabel": ("mean_average_precision", 0.75),
        "regression": ("r2", 0.4),
    }[task]
    assert report.record["metrics"]["test"][metric]["value"] > chance
    fitted, _ = load_head(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in fitted.state_dict().values())
    assert 0.1 < fitted.state_dict()["inputs.deviation_0"][CONSTANT] < 10, "a constant feature is not blown up"


def test_predictions_of_labels_and_of_values(tmp_path):
    for task in ("multilabel", "regression"):
        store = made_store(tmp_path / f"{task}.zarr", task)
        run(config(store, tmp_path / task, head="ridge", layers="concat"))
    labels, values = predictions(tmp_path / "multilabel"), predictions(tmp_path / "regression")

    rows = [row for row, split in enumerate(split_of(120)) if split == "test"]
    names = np.array(["ant", "bee", "cow"])
    assert labels["label"] == ["|".join(names[target > 0]) for target in targets_of("multilabel", 120)[rows]]
    assert list(values)[3:] == ["value_ant", "value_bee", "value_cow"]
    np.testing.assert_allclose(values["label"], targets_of("regression", 120)[rows], rtol=1e-6)


def test_class_weights_are_the_inverse_of_the_frequency_and_one_on_average(tmp_path):
    targets = np.array([0] * 90 + [1] * 30)
    store = open_store(made_store(tmp_path / "x.zarr", targets=targets, split=["train"] * 120))

    weights = class_weights(planned(store, config(store.path, tmp_path / "run")).sources["train"])

    torch.testing.assert_close(weights[:2], torch.tensor([120 / (2 * 90), 120 / (2 * 30)]))
    assert weights[torch.from_numpy(targets)].mean().item() == pytest.approx(1.0)


def test_balanced_class_weights_find_more_of_the_rare_class(tmp_path):
    targets = np.where(targets_of("classification", 400) == 0, (np.arange(400) % 3 == 0).astype(int), 1)
    store = made_store(tmp_path / "x.zarr", rows=400, targets=targets)
    settings = {"epochs": 40, "lr": 0.01, "layers": "concat"}

    plain = run(config(store, tmp_path / "plain", **settings)).record["metrics"]["test"]
    balanced = run(config(store, tmp_path / "balanced", class_weights="balanced", **settings)).record["metrics"]["test"]

    rare = int(np.bincount(targets)[:2].argmin())
    assert balanced["per_class_recall"][rare] > plain["per_class_recall"][rare]


def test_standardising_can_be_left_out(tmp_path):
    store = made_store(tmp_path / "x.zarr")

    run(config(store, tmp_path / "run", standardise=False))

    assert not [name for name in load_head(tmp_path / "run")[0].state_dict() if name.startswith("inputs.")]


def test_rows_that_are_skipped_or_unlabelled_are_left_out(tmp_path):
    targets = targets_of("classification", 120)
    targets[[0, 2]] = -1
    store = open_store(made_store(tmp_path / "x.zarr", targets=targets, skipped=(1, 6)))

    rows = {split: labelled_rows(store, split).tolist() for split in ("train", "test")}

    assert not {0, 1} & set(rows["train"]) and not {2, 6} & set(rows["test"])
    assert len(rows["train"]) == 6 * 12 - 2
    values = targets_of("regression", 120)
    values[3, 1] = np.nan
    store = open_store(made_store(tmp_path / "y.zarr", "regression", targets=values))
    assert 3 not in labelled_rows(store, "train") and len(labelled_rows(store, "train")) == 71


def test_a_store_without_provenance_trains_but_names_no_origin(digits_store, tmp_path):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(digits_store, copy)
    (copy / PROVENANCE).unlink()

    assert run(config(copy, tmp_path / "run", head="ridge")).record["features"]["origin"] == {}


def test_the_report_shows_every_split_with_intervals(digits_store, ridge_run):
    report = run(config(digits_store, ridge_run, head="ridge"))

    table = report.tables()[0]

    value = report.record["metrics"]["test"]["top1"]
    assert [row[0] for row in table.rows] == ["val", "test"]
    assert table.rows[1][1] == f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
    note = replace(report, repeated=False).tables()[0].notes[0]
    assert "closed form, head of 1,290 parameters, 0 of them trainable; the backbone demo is frozen, " in note
    assert json.loads(json.dumps(report.json()))["run"] == str(ridge_run)
