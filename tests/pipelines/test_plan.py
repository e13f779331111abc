"""A plan says what the same extraction then makes, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import namedtuple
from pathlib import Path

import h5py
import pytest
from click.testing import CliRunner

import cli
import save_features
from featurecache.errors import ConfigError, StoreMismatchError
from featurecache.stores import open_store
from pipelines import plan
from pipelines.plan import PlanConfig
from save_features import SaveFeaturesConfig
from tests.extraction_samples import BATCH, Forwards, pictures, settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("plans") / "animals", cat=40, dog=37)


def planning(config: SaveFeaturesConfig, **changes) -> PlanConfig:
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return PlanConfig(**{**given, "probe_seconds": 0.2, **changes})


@pytest.mark.parametrize(
    "changes",
    [{}, {"tokens": "cls+patch-grid:2", "dtype": "bfloat16"}, {"tokens": "all", "views": 2}, {"layers": "none", "logits": True}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_the_bytes_of_every_array_are_those_that_are_then_written(folder, tmp_path, suffix, changes):
    config = settings(folder, tmp_path / f"x{suffix}", **changes)

    planned = plan.run(planning(config))
    save_features.run(config)

    header = open_store(config.out).header
    assert planned.rows == planned.rows_left == header.rows
    assert {spec.name: spec.tail for spec in header.arrays} == planned.shapes
    for name in planned.shapes:
        assert written(config.out, name) == planned.arrays[name]
    total = sum(file.stat().st_size for file in [config.out, *config.out.rglob("*")] if file.is_file())
    assert planned.total_bytes == pytest.approx(total, rel=0.3), "small stores are mostly metadata"


def written(store: Path, name: str) -> int:
    if store.is_dir():
        return sum(file.stat().st_size for file in (store / name / "c").rglob("*") if file.is_file())
    with h5py.File(store) as file:
        return file[name].id.get_storage_size()


def test_seconds_are_those_of_the_trial_for_every_row(folder, tmp_path, monkeypatch):
    batches = -(-77 // BATCH)
    monkeypatch.setattr(plan, "_extraction", lambda backbone, dataset, header, config: 3.0 + 0.1 * len(dataset))

    planned = plan.run(planning(settings(folder, tmp_path / "x.zarr"), probe_seconds=4.7 * batches))

    assert planned.rows_per_second == pytest.approx(10, rel=0.05)
    assert planned.seconds["features"] == pytest.approx(3.0 + 7.7, rel=0.05)
    assert planned.minutes == pytest.approx(sum(planned.seconds.values()) / 60)


def test_nothing_is_left_behind(folder, tmp_path):
    plan.run(planning(settings(folder, tmp_path / "runs/deep/x.zarr")))

    assert not list(tmp_path.iterdir())


def test_unreadable_images_do_not_stop_a_plan(tmp_path):
    folder = pictures(tmp_path / "animals")
    (folder / "cat/000.png").write_bytes(b"no picture")

    assert plan.run(planning(settings(folder, tmp_path / "x.zarr"))).rows == 40


def test_only_what_a_store_lacks_is_reckoned(folder, tmp_path, monkeypatch):
    config = settings(folder, tmp_path / "x.zarr", layers="5")
    forwards = Forwards().watch(monkeypatch)
    monkeypatch.setattr(plan, "load_backbone", save_features.load_backbone)
    save_features.run(config)

    done = plan.run(planning(config))
    forwards.requests.clear()
    more = plan.run(planning(config, layers="4-5", extend=True))

    assert (done.rows_left, done.seconds["features"]) == (0, 0.0)
    assert more.rows_left == 77
    assert {request.layers for request in forwards.requests} == {(4,)}
    assert {"layers/cls/04", "layers/cls/05", "embedding"} < set(more.arrays)


def test_a_store_of_other_features_is_named_before_anything_runs(folder, tmp_path):
    config = settings(folder, tmp_path / "x.zarr", layers="5")
    save_features.run(config)

    with pytest.raises(StoreMismatchError, match=r"backbone\.norm: the store has 'final', this run 'none'"):
        plan.run(planning(config, norm="none"))


def test_what_does_not_fit_the_disk_is_told(folder, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))

    (table,) = plan.run(planning(settings(folder, tmp_path / "x.zarr"))).tables()

    assert table.notes[-1].startswith("It does not fit: make room")


def test_the_verb_takes_the_options_of_an_extraction(folder, tmp_path):
    call = ["plan", str(folder), "--backbone", "demo", "--layers", "4-5", "--out", str(tmp_path / "x.zarr")]

    shown = CliRunner().invoke(cli.main, [*call, "--probe-seconds", "0.1"])
    told = json.loads(CliRunner().invoke(cli.main, [*call, "--probe-seconds", "0.1", "--json"]).stdout)

    assert "77 rows; " in shown.stdout
    assert "minutes at" in shown.stdout
    assert told["rows"] == 77
    assert told["total_bytes"] == sum(told["arrays"].values())
    help_text = CliRunner().invoke(cli.main, ["plan", "--help"]).stdout
    assert "Seconds that the trial may take" in help_text
    assert "Layers to keep" in help_text


def test_all_problems_of_the_options_are_told_at_once(folder, tmp_path):
    with pytest.raises(ConfigError, match="(?s)batch_size must be positive.*views must be positive"):
        planning(settings(folder, tmp_path / "x.zarr"), batch_size=0, views=0)
    with pytest.raises(ConfigError, match="probe_seconds must be positive, got 0"):
        planning(settings(folder, tmp_path / "x.zarr"), probe_seconds=0)
