"""The verb `split`: a finished store is divided anew, by a draw or a table, and nothing else of it changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import save_features
from featurecache.errors import ConfigError, DatasetError, StoreBusyError, StoreContentsError, StoreError
from featurecache.provenance import provenance
from featurecache.scoring import saved_scores
from featurecache.stores import examine_store, open_store
from pipelines.maintain import ConvertConfig, convert
from pipelines.split import SplitConfig, run
from tests.extraction_samples import lasting, pictures, settings
from tests.pipelines.stores import made_store


def divided(path: Path, **changes):
    return run(SplitConfig(store=path, **changes))


def splits_of(path: Path) -> list[str]:
    return [str(name) for name in open_store(path).table().split]


def table_of(path: Path, lines: dict[str, str]) -> Path:
    path.write_text("sample_id,split\n" + "".join(f"{name},{part}\n" for name, part in lines.items()), encoding="utf-8")
    return path


def test_a_divided_store_has_the_bytes_of_one_that_was_extracted_so(tmp_path):
    folder = pictures(tmp_path / "animals", cat=30, dog=30)
    save_features.run(settings(folder, tmp_path / "seed-0.zarr"))
    save_features.run(settings(folder, tmp_path / "seed-7.zarr", split_seed=7))
    before = lasting(tmp_path / "seed-0.zarr")

    report = divided(tmp_path / "seed-0.zarr", seed=7)

    ours, theirs = lasting(tmp_path / "seed-0.zarr"), lasting(tmp_path / "seed-7.zarr")
    named = {"zarr.json", "ledger.jsonl", "journal.copy"}
    """Files that tell of the header, which says that the store was divided anew."""
    assert {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} == named
    assert report.moved == sum(
        a != b for a, b in zip(splits_of(tmp_path / "seed-7.zarr"), before_split(before), strict=True)
    )
    assert examine_store(tmp_path / "seed-0.zarr").damages == ()
    divided(tmp_path / "seed-0.zarr", seed=0)
    assert lasting(tmp_path / "seed-0.zarr") == before, "the draw of the data itself leaves no trace"


def before_split(files: dict[str, bytes]) -> list[str]:
    content, place, found = files["split/c/0"], 4, []
    for _ in range(60):
        length = int.from_bytes(content[place : place + 4], "little")
        found.append(content[place + 4 : place + 4 + length].decode())
        place += 4 + length
    return found


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_the_same_command_again_changes_no_byte(suffix, tmp_path):
    path = made_store(tmp_path / f"x{suffix}")
    arrays = open_store(path).to_numpy("embedding")
    first = divided(path, seed=3, test=0.3, val=0.2)
    content = {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    again = divided(path, seed=3, test=0.3, val=0.2)

    assert first.moved > 0 and again.moved == 0
    assert "divided so already: nothing to do" in again.tables()[0].notes[0]
    assert {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()} == content
    assert examine_store(path).damages == () and open_store(path).finished
    np.testing.assert_array_equal(open_store(path).to_numpy("embedding"), arrays)


def test_shares_are_those_asked_for_and_every_class_keeps_some_to_learn_from(tmp_path):
    targets = np.arange(600) % 3
    path = made_store(tmp_path / "x.zarr", rows=600, targets=targets)

    report = divided(path, test=0.4, val=0.25)

    split = np.asarray(splits_of(path))
    assert abs((split == "test").mean() - 0.4) < 0.06
    assert abs((split == "val").sum() / (split != "test").sum() - 0.25) < 0.06
    assert all((targets[split == "train"] == label).any() for label in range(3))
    assert report.rule == "digest 60/40, val 25 % of train, seed 0"


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_never_separated(seed, tmp_path):
    group = [f"patient {row // 5}" for row in range(120)]
    path = made_store(tmp_path / "x.zarr", group=group)

    divided(path, seed=seed, test=0.3, val=0.3)

    found = {}
    for name, part in zip(group, splits_of(path), strict=True):
        found.setdefault(name, set()).add(part)
    assert all(len(parts) == 1 for parts in found.values()) and len(set.union(*found.values())) == 3


def test_rows_without_a_label_are_in_no_split(tmp_path):
    targets = np.arange(60) % 3
    targets[:10] = -1
    path = made_store(tmp_path / "x.zarr", rows=60, targets=targets)

    report = divided(path)

    assert set(splits_of(path)[:10]) == {""} and "" not in splits_of(path)[10:]
    assert ("none", 10) in report.tables()[0].rows


def test_a_table_gives_every_sample_its_split(tmp_path):
    path = made_store(tmp_path / "x.zarr")
    lines = {f"{row}.jpg": ("train", "Testing", "validation")[row % 3] for row in reversed(range(120))}

    report = divided(path, from_=table_of(tmp_path / "splits.csv", lines))

    assert splits_of(path) == [("train", "test", "val")[row % 3] for row in range(120)]
    assert report.rule.startswith("table ")
    assert divided(path, from_=tmp_path / "splits.csv").moved == 0


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_a_table_may_have_other_columns_another_separator_and_a_byte_order_mark(sign, tmp_path):
    path = made_store(tmp_path / "x.zarr")
    lines = [["split", "note", "sample_id"], *([("train", "test")[row % 2], "", f"{row}.jpg"] for row in range(120))]
    (tmp_path / "s.csv").write_text("\n".join(map(sign.join, lines)), encoding="utf-8-sig")

    divided(path, from_=tmp_path / "s.csv")

    assert splits_of(path) == ["train", "test"] * 60


def test_a_table_without_val_gets_one_where_that_is_asked(tmp_path):
    path = made_store(tmp_path / "x.zarr")
    table = table_of(tmp_path / "splits.csv", {f"{row}.jpg": "test" if row % 3 == 0 else "train" for row in range(120)})

    assert "there are no rows to choose on: --val 0.1" in " ".join(divided(path, from_=table).tables()[0].notes)
    assert "val" not in splits_of(path)
    divided(path, from_=table, val=0.2)
    assert 5 < splits_of(path).count("val") < 30 and splits_of(path).count("test") == 40


def test_everything_that_is_wrong_with_a_table_is_said_at_once(tmp_path):
    path = made_store(tmp_path / "x.zarr")
    content = (path / "split/c/0").read_bytes()
    lines = [f"{row}.jpg,train" for row in range(2, 120)] + ["999.jpg,train", "2.jpg,test", "3.jpg,sometimes"]
    (tmp_path / "splits.csv").write_text("sample_id,split\n" + "\n".join(lines), encoding="utf-8")

    with pytest.raises(ConfigError) as refused:
        divided(path, from_=tmp_path / "splits.csv")

    said = " ".join(refused.value.problems)
    assert "1 ids that the store does not hold: line 120: '999.jpg'" in said
    assert "2 ids that are there twice: line 121: '2.jpg', line 122: '3.jpg'" in said
    assert "1 words for splits other than train, val, test and their usual names: line 122: 'sometimes'" in said
    assert "2 labelled samples of the store that have no line, or no split in it: '0.jpg', '1.jpg'" in said
    assert (path / "split/c/0").read_bytes() == content


def test_a_table_that_separates_a_group_is_refused_by_its_name(tmp_path):
    path = made_store(tmp_path / "x.zarr", group=[f"patient {row // 2}" for row in range(120)])
    table = table_of(tmp_path / "s.csv", {f"{row}.jpg": "test" if row == 7 else "train" for row in range(120)})

    with pytest.raises(DatasetError, match="'patient 3' in test and train"):
        divided(path, from_=table)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"id,part\na,train\n", "needs the columns sample_id and split; its first line has id, part"),
        (b"\xff\xfe\x00", "is not a CSV file in UTF-8"),
        (b"", "its first line has nothing"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused(content, match, tmp_path):
    path = made_store(tmp_path / "x.zarr")
    (tmp_path / "s.csv").write_bytes(content)

    with pytest.raises(ConfigError, match=match):
        divided(path, from_=tmp_path / "s.csv")


def test_scores_of_other_training_rows_are_dropped_with_a_word(tmp_path):
    path = made_store(tmp_path / "x.zarr")
    before = saved_scores(open_store(path))

    report = divided(path, seed=5, test=0.4)

    assert list(report.stale) == ["logme"] and not list((path / "scores").glob("*"))
    assert any("featurecache logme" in note for note in report.tables()[0].notes)
    after = saved_scores(open_store(path))
    assert after[0]["rows"] == splits_of(path).count("train") != before[0]["rows"]


def test_a_division_is_journalled(tmp_path):
    path = made_store(tmp_path / "x.zarr")

    divided(path, seed=5)

    (line,) = [line["split"] for line in provenance(path) if "split" in line]
    assert line["rule"] == "digest 80/20, val 10 % of train, seed 5" and line["seed"] == 5 and line["moved"] > 0
    assert open_store(path).header.dataset["split_rule"] == line["rule"]


def test_a_second_writer_is_refused(tmp_path):
    path = made_store(tmp_path / "x.zarr")
    writer = open_store(path, writable=True)

    with pytest.raises(StoreBusyError, match="is being written by process"):
        divided(path, seed=5)
    writer.close()


def test_a_store_that_can_only_be_read_is_refused_in_words(tmp_path, monkeypatch):
    path = made_store(tmp_path / "x.zarr")
    monkeypatch.setattr("featurecache.stores._locking.os.open", _refused)

    with pytest.raises(
        StoreError, match=r"cannot be written \(Read-only file system\), so it stays divided as it is.*convert"
    ):
        divided(path, seed=5)


def _refused(*_: object) -> int:
    raise OSError(30, os.strerror(30))


def test_an_unfinished_store_and_one_without_labels_are_refused(tmp_path):
    unfinished = made_store(tmp_path / "x.zarr", stop_at=40)
    unlabelled = made_store(tmp_path / "y.zarr", targets=np.full(120, -1))

    with pytest.raises(StoreContentsError, match="80 of 120 rows are not committed"):
        divided(unfinished)
    with pytest.raises(StoreContentsError, match="holds no labelled row"):
        divided(unlabelled)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"test": 1.0}, r"test must lie in \[0, 1\)"),
        ({"val": -0.1}, r"val must lie in \[0, 1\)"),
        ({"test": 0.0, "val": 0.0}, "every row would be in train"),
        ({"from_": Path("s.csv"), "test": 0.2}, "--from says which samples are the test"),
        ({"from_": Path("s.txt")}, "must end in .csv"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        SplitConfig(store=Path("x.zarr"), **changes)


def test_an_extraction_that_comes_again_leaves_the_splits_and_says_so(tmp_path):
    folder, path = pictures(tmp_path / "animals", cat=30, dog=30), tmp_path / "x.zarr"
    save_features.run(settings(folder, path))
    divided(path, seed=7, test=0.4)
    content = lasting(path)

    report = save_features.run(settings(folder, path))

    assert lasting(path) == content and report.was_finished
    assert any("stay divided as `featurecache split` divided them" in note for note in report.tables()[0].notes)


def test_new_samples_and_layers_are_taken_in_by_the_rule_of_the_division(tmp_path):
    folder, path = pictures(tmp_path / "animals", cat=30, dog=30), tmp_path / "x.zarr"
    save_features.run(settings(folder, path, layers="none"))
    divided(path, seed=7, test=0.4)
    before = splits_of(path)
    for number in range(30):
        shutil.copy(folder / f"cat/{number:03d}.png", folder / f"cat/new-{number}.png")

    save_features.run(settings(folder, path, extend=True, layers="last"))

    assert splits_of(path)[:60] == before and open_store(path).header.rows == 90
    save_features.run(settings(folder, tmp_path / "y.zarr", layers="last"))
    divided(tmp_path / "y.zarr", seed=7, test=0.4)
    fresh = dict(zip(open_store(tmp_path / "y.zarr").table().sample_id, splits_of(tmp_path / "y.zarr"), strict=True))
    ours = dict(zip(open_store(path).table().sample_id, splits_of(path), strict=True))
    assert ours == fresh and {ours[name] for name in ours if "new" in name} >= {"train", "test"}


def test_new_samples_of_a_store_divided_by_a_table_are_in_no_split(tmp_path, caplog):
    folder, path = pictures(tmp_path / "animals", cat=10, dog=10), tmp_path / "x.zarr"
    save_features.run(settings(folder, path, layers="none"))
    names = [str(name) for name in open_store(path).table().sample_id]
    divided(path, from_=table_of(tmp_path / "s.csv", {name: ("train", "test")[i % 2] for i, name in enumerate(names)}))
    shutil.copy(folder / "cat/000.png", folder / "cat/new.png")

    save_features.run(settings(folder, path, extend=True, layers="none"))

    assert splits_of(path) == [("train", "test")[i % 2] for i in range(20)] + [""]
    assert "1 samples are in no split" in caplog.text


def test_a_damaged_column_of_splits_is_repaired_as_it_was_divided(tmp_path):
    from pipelines.verify import VerifyConfig
    from pipelines.verify import run as verify

    folder, path = pictures(tmp_path / "animals", cat=30, dog=30), tmp_path / "x.zarr"
    save_features.run(settings(folder, path, layers="none"))
    divided(path, seed=7, test=0.4)
    content = lasting(path)
    (path / "split/c/0").write_bytes(b"damaged")

    verify(VerifyConfig(store=path, repair=True, quiet=True))

    assert lasting(path) == content


def test_a_divided_store_is_converted_there_and_back(tmp_path):
    path = made_store(tmp_path / "x.zarr")
    divided(path, seed=7)

    convert(ConvertConfig(store=path, out=tmp_path / "x.h5"))
    convert(ConvertConfig(store=tmp_path / "x.h5", out=tmp_path / "back.zarr"))

    assert lasting(tmp_path / "back.zarr") == lasting(path)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_stores_of_other_tasks_are_divided_too(task, tmp_path):
    path = made_store(tmp_path / "x.zarr", task)

    divided(path, seed=2, test=0.3)

    assert set(splits_of(path)) == {"train", "val", "test"}
