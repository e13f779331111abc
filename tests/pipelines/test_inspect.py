"""`info` says what a store or a run holds; `list` says what can be named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featurecache.errors import ConfigError, RunError, StoreNotFoundError
from featurecache.stores import open_store
from heads import HEADS
from pipelines.inspect import InfoConfig, ListConfig, info, list_names
from pipelines.train_head import TrainHeadConfig, run
from tests.pipelines.conftest import ROWS
from tests.pipelines.stores import made_store


def shown(facts, table: int = 0) -> dict[str, object]:
    return {str(name): value for name, value in facts.tables()[table].rows}


def test_a_store_is_described_with_its_identity_and_arrays(digits_store):
    facts = info(InfoConfig(store=digits_store))

    value, header = facts.json(), open_store(digits_store).header
    assert (value["rows"], value["committed"], value["skipped"], value["finished"]) == (ROWS, ROWS, 0, True)
    assert value["backbone"] == dict(header.backbone)
    assert sum(value["splits"].values()) == ROWS and set(value["splits"]) == {"train", "val", "test"}
    arrays = {array["name"]: array for array in value["arrays"]}
    assert set(arrays) == {spec.name for spec in header.arrays}
    assert arrays["layers/mean/04"]["shape"] == f"{ROWS}x1x128"
    assert arrays["layers/mean/04"]["norm"] == "norm" and arrays["embedding"]["norm"] == ""
    assert shown(facts)["backbone.name"] == "demo"
    json.dumps(value)


def test_what_is_missing_skipped_and_unlabelled_is_counted(tmp_path):
    path = made_store(tmp_path / "x.zarr", skipped=(3, 5, 90), stop_at=64, split=["train"] * 100 + [""] * 20)

    value = info(InfoConfig(store=path)).json()

    assert (value["rows"], value["committed"], value["skipped"], value["finished"]) == (120, 64, 2, False)
    assert value["splits"] == {"train": 100, "unlabelled": 20}


def test_a_run_is_described_by_its_settings_and_its_metrics(tmp_path):
    store, out = made_store(tmp_path / "x.zarr"), tmp_path / "run"
    run(TrainHeadConfig(store=store, out=out, head="ridge", quiet=True))

    facts = info(InfoConfig(store=out))

    assert facts.json()["record"] == json.loads((out / "record.json").read_text())
    assert facts.json()["config"] == json.loads((out / "config.json").read_text())
    assert shown(facts)["head"] == "ridge"
    assert shown(facts)["backbone"] == "made"
    assert [row[0] for row in facts.tables()[1].rows] == ["val", "test"]


def test_a_run_that_did_not_finish_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(RunError, match="did not finish"):
        info(InfoConfig(store=tmp_path))


def test_nothing_is_answered_as_nothing():
    with pytest.raises(StoreNotFoundError, match="nowhere does not exist. Name a store, or the folder of a run"):
        info(InfoConfig(store=Path("nowhere")))


def test_a_folder_that_is_neither_is_answered_with_what_a_store_looks_like(tmp_path):
    with pytest.raises(ConfigError, match=r"must end in one of \.h5, \.hdf5, \.zarr"):
        info(InfoConfig(store=tmp_path))


def test_every_kind_is_listed():
    found = list_names(ListConfig()).json()

    assert set(found) == {
        "analyses", "backbones", "datasets", "heads", "objectives", "peft", "protocols", "scores", "stores",
    }  # fmt: skip
    assert [item["name"] for item in found["heads"]] == HEADS.names()
    assert [item["name"] for item in found["objectives"]][::8] == ["none", "concat_probe"]
    assert {"digits", "image_folder", "archive"} <= {item["name"] for item in found["datasets"]}


def test_one_kind_is_listed_and_what_matches_of_it():
    assert list(list_names(ListConfig(what="heads")).json()) == ["heads"]
    assert [item["name"] for item in list_names(ListConfig(what="heads", filter="rid")).json()["heads"]] == ["ridge"]
    assert [item["name"] for item in list_names(ListConfig(filter="l*a")).json()["heads"]] == ["lfa"]


def test_models_of_timm_are_listed_among_the_backbones():
    found = list_names(ListConfig(what="backbones", filter="vit_tiny_patch16_224")).json()

    assert "timm:vit_tiny_patch16_224" in {item["name"] for item in found["timm models"]}
    assert found["backbones"] == []


def test_a_filter_that_nothing_matches_is_told():
    facts = list_names(ListConfig(filter="xyz*"))

    assert facts.tables()[0].notes == ("no name matches xyz*",)
