"""`--test-split`: which rows are measured and chosen on in data without a test split, or where a user names another one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featurecache.datasets import RowTable
from featurecache.datasets._splits import draw_from
from featurecache.errors import ConfigError, StoreContentsError
from featurecache.stores import open_store
from pipelines._roles import assign_roles, read_store_in_roles
from pipelines.estimator import HeadClassifier
from pipelines.evaluate import EvaluateConfig
from pipelines.evaluate import run as evaluate
from pipelines.find_leaks import LeaksConfig
from pipelines.find_leaks import run as leaks
from pipelines.report import ReportConfig
from pipelines.report import run as report
from pipelines.run_protocol import RunProtocolConfig
from pipelines.run_protocol import run as run_protocol
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train_head
from pipelines.train_online import run as train_online
from pipelines.training.closing import describe_selection, describe_split
from tests.pipelines.online_samples import online
from tests.pipelines.pictures import pictures, store_of
from tests.pipelines.stores import made_store

ROWS = 240
VAL = [row for row in range(ROWS) if row % 4 == 0]


def old_store(tmp_path: Path, name: str = "x.zarr", **changes) -> Path:
    """Write a store as older extractions of train/ and val/ left it: nothing is the test."""
    return made_store(
        tmp_path / name, rows=ROWS, split=["val" if row in VAL else "train" for row in range(ROWS)], **changes
    )


def table(split: list[str], target: np.ndarray | None = None, group: list[str] | None = None) -> RowTable:
    rows = len(split)
    return RowTable(
        sample_id=[f"{row}.jpg" for row in range(rows)], target=np.arange(rows) % 3 if target is None else target,
        split=split, domain=[""] * rows, group=group or [""] * rows,
    )  # fmt: skip


def trained(store: Path, out: Path, **changes):
    return train_head(TrainHeadConfig(store=store, out=out, quiet=True, epochs=3, **changes)).record


def held_out(store: Path) -> list[str]:
    """Return the rows of train that the digest rule of extraction would make val."""
    rows = open_store(store).table()
    split = [str(name) for name in rows.split]
    draw_from(split, "train", "val2", [str(name) for name in rows.sample_id], np.asarray(rows.target), 0, 0.1)
    found = [str(name) for name in rows.split]
    draw_from(found, "train", "val", [str(name) for name in rows.sample_id], np.asarray(rows.target), 0, 0.1)
    return [str(name) for name, old, new in zip(rows.sample_id, rows.split, found, strict=True) if old != new]


def test_where_nothing_is_the_test_val_is_and_a_tenth_of_train_by_digest_is_chosen_on(tmp_path):
    store = old_store(tmp_path)

    read, roles = read_store_in_roles(open_store(store), None)

    split = np.asarray(read.table().split)
    assert np.flatnonzero(split == "test").tolist() == VAL
    assert [f"{row}.jpg" for row in np.flatnonzero(split == "val")] == held_out(store)
    assert 5 < (split == "val").sum() < 40
    assert roles.remark.endswith(
        "there is no labelled test split, so val is measured as the test, and a tenth of train is held out to choose on"
    )
    assert read.column("split", slice(3, 9)).tolist() == split[3:9].tolist()
    assert list(open_store(store).table().split).count("test") == 0, "nothing is written"


def test_a_store_with_a_test_is_read_as_it_is(tmp_path):
    store = open_store(made_store(tmp_path / "x.zarr"))

    assert read_store_in_roles(store, None) == (store, None) == read_store_in_roles(store, "test")


def test_another_split_may_be_measured_and_the_test_then_has_no_part(tmp_path):
    store = open_store(made_store(tmp_path / "x.zarr"))
    before = np.asarray(store.table().split)

    read, roles = read_store_in_roles(store, "val")

    split = np.asarray(read.table().split)
    assert (split[before == "val"] == "test").all() and (split[before == "test"] == "").all()
    assert set(split[before == "train"]) == {"train", "val"} and roles.measured == "val"


def test_a_test_split_without_labels_is_none(tmp_path):
    split = ["train", "val", "test", "train"] * 10
    target = np.where(np.asarray(split) == "test", -1, np.arange(40) % 3)

    roles = assign_roles(table(split, target), "classification", None, "x")

    assert roles is not None and roles.measured == "val"


def test_rows_that_are_held_out_keep_their_groups_together():
    group = [f"patient {row // 4}" for row in range(400)]

    roles = assign_roles(
        table(["val" if row < 80 else "train" for row in range(400)], group=group), "classification", None, "x"
    )

    places = {}
    for name, part in zip(group, roles.split, strict=True):
        places.setdefault(name, set()).add(part)
    assert all(len(parts) == 1 for parts in places.values()) and {"val"} in places.values()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "vall",
            r"--test-split vall: x has no labelled rows in a split 'vall'. Did you mean 'val'\? It has train, val",
        ),
        ("test", "has no labelled rows in a split 'test'"),
        ("train", "heads learn from train, so it cannot be the test"),
    ],
)
def test_a_split_that_cannot_be_measured_is_refused_with_those_that_can(name, match):
    with pytest.raises(ConfigError, match=match):
        assign_roles(table(["train", "train", "val"] * 5), "classification", name, "x")


def test_a_head_is_measured_on_val_and_chosen_on_rows_of_train(tmp_path):
    store = old_store(tmp_path)

    by_default, asked = trained(store, tmp_path / "a"), trained(store, tmp_path / "b", test_split="val")

    assert by_default["metrics"] == asked["metrics"] and set(asked["metrics"]) == {"val", "test"}
    assert asked["rows"]["test"] == len(VAL) and asked["rows"]["train"] + asked["rows"]["val"] == ROWS - len(VAL)
    assert asked["splits"]["test"] == "val" and asked["splits"]["val"] == "a tenth of train"
    (shown,) = [row[0] for row in report_rows(tmp_path / "b") if row[0].startswith("test")]
    assert shown == "test (val)"


def report_rows(run: Path) -> list[tuple]:
    from featurecache.runs import read_run
    from pipelines.train_head import TrainReport

    return list(TrainReport(run, read_run(run)[1]).tables()[-1].rows)


def test_the_run_that_was_made_before_is_still_the_same_run(tmp_path):
    store = made_store(tmp_path / "x.zarr")
    trained(store, tmp_path / "a")

    assert "test_split" not in (tmp_path / "a/config.json").read_text()
    with pytest.raises(Exception, match="test_split"):
        trained(store, tmp_path / "a", test_split="val")


def test_a_value_of_rows_that_were_chosen_on_says_so_in_table_and_report(tmp_path):
    record = {"metrics": {"val": {}}, "trained_parameters": 3}

    assert describe_split("val", record) == "val (chosen on: no test)"
    assert describe_selection(record) == [
        "what is kept was chosen on val, so the values of val flatter; nothing here measures new data"
    ]
    store = made_store(tmp_path / "x.zarr", split=["val" if row % 4 == 0 else "train" for row in range(120)])
    trained(store, tmp_path / "run")
    report(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "page.html"))
    assert "test (val)" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("protocol", ["holdout", "few-shot:1,2"])
def test_protocols_run_on_a_store_without_a_test(protocol, tmp_path, caplog):
    names = ("ant", "bee", "cow", "dog")
    store = old_store(tmp_path, targets=np.arange(ROWS) // 4 % 4, class_names=names)

    done = run_protocol(RunProtocolConfig(
        protocol=protocol, stores=(store,), out=tmp_path / "p", heads=("prototype",), quiet=True,
    ))  # fmt: skip

    tested = {path.name: path.read_text().split() for path in (tmp_path / "p/rows").rglob("test*.txt")}
    assert {row for rows in tested.values() for row in rows} == {f"{row}.jpg" for row in VAL}
    assert any("val is measured as the test" in remark for remark in done.record["remarks"])


def test_a_protocol_that_measures_no_split_refuses_to_be_given_one(tmp_path):
    store = old_store(tmp_path)

    with pytest.raises(
        ConfigError, match="holdout.*folds=3.* draws its tests from the rows of all splits: leave --test-split out"
    ):
        run_protocol(RunProtocolConfig(
            protocol="holdout?folds=3", stores=(store,), out=tmp_path / "p", test_split="val", quiet=True,
        ))  # fmt: skip
    with pytest.raises(ConfigError, match="has no labelled rows in a split 'new'"):
        run_protocol(
            RunProtocolConfig(protocol="holdout", stores=(store,), out=tmp_path / "p", test_split="new", quiet=True)
        )
    done = run_protocol(RunProtocolConfig(
        protocol="holdout?folds=3", stores=(store,), out=tmp_path / "p", heads=("prototype",), quiet=True, leaks=False,
    ))  # fmt: skip
    assert not any("as the test" in remark for remark in done.record["remarks"]), "folds read no split"


def test_leaks_of_a_store_without_a_test_are_those_of_val(tmp_path):
    found = leaks(LeaksConfig(store=old_store(tmp_path)))

    assert found.compared == (len(VAL), ROWS - len(VAL)) and "val is measured" in found.remarks[0]
    with pytest.raises(ConfigError, match="test_split and test or train exclude each other"):
        LeaksConfig(store=tmp_path / "x.zarr", test="val", train=("train",), test_split="val")
    with pytest.raises(StoreContentsError, match="has no split 'tset'"):
        leaks(LeaksConfig(store=tmp_path / "x.zarr", test="tset"))


def test_evaluate_reads_the_splits_as_the_run_did(tmp_path):
    store = old_store(tmp_path)
    record = trained(store, tmp_path / "run", test_split="val")

    (found,) = evaluate(EvaluateConfig(run_folder=tmp_path / "run")).found

    assert found["rows"] == len(VAL) and found["warning"] == ""
    assert found["metrics"]["top1"] == record["metrics"]["test"]["top1"]
    (other,) = evaluate(EvaluateConfig(run_folder=tmp_path / "run", test_split="val")).found
    assert other["metrics"] == found["metrics"]
    with pytest.raises(ConfigError, match=r"has no rows in a split 'vall'. Did you mean 'val'\?"):
        evaluate(EvaluateConfig(run_folder=tmp_path / "run", test_split="vall"))
    with pytest.raises(ConfigError, match="split and test_split say the same"):
        EvaluateConfig(run_folder=tmp_path / "run", test_split="val", split="val")


def test_training_on_images_takes_it_too(tmp_path):
    folder = tmp_path / "photos"
    for part, count in (("train", 12), ("val", 4), ("test", 4)):
        pictures(folder / part, {"blue": count, "red": count}, first=count)

    record = train_online(online(folder, tmp_path / "run", test_split="val", epochs=1)).record

    assert record["splits"]["test"] == "val" and record["rows"]["test"] == 8
    assert record["rows"]["train"] + record["rows"]["val"] == 24
    with pytest.raises(ConfigError, match="has no labelled rows in a split 'dev'.* It has test, train, val"):
        train_online(online(folder, tmp_path / "other", test_split="dev"))


def test_the_estimator_reads_a_store_without_a_test_in_the_same_way(tmp_path):
    store = old_store(tmp_path)
    record = trained(store, tmp_path / "run", head="prototype")

    fitted = HeadClassifier("prototype").fit(store)

    assert len(fitted.predict(store)) == len(VAL)
    assert fitted.score(store) == pytest.approx(record["metrics"]["test"]["top1"]["value"])


def test_the_val_of_data_whose_val_is_the_test_already_is_that_test(tmp_path):
    folder = tmp_path / "photos"
    for part, count in (("train", 20), ("val", 5)):
        pictures(folder / part, {"blue": count, "red": count}, first=count)
    store = open_store(store_of(folder, tmp_path / "x.zarr"))
    assert "val as test" in store.header.dataset["split_rule"]

    assert read_store_in_roles(store, None) == read_store_in_roles(store, "val") == (store, None)
    assert [str(name).startswith("val/") for name in store.table().sample_id] == [
        str(part) == "test" for part in store.table().split
    ]
