"""Automatic splits: near 80/20, balanced, and stable when data sets grow."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from featurecache.datasets import open_dataset
from featurecache.datasets._splits import TEST_SHARE, VAL_AS_TEST, as_divided_before, automatic, divided
from featurecache.errors import DatasetError
from featurecache.seeding import unit_interval
from tests.featurecache.datasets.pictures import as_folder, encoded, tree


def ids(classes: int, each: int) -> tuple[list[str], np.ndarray]:
    keys = [f"class{c}/{i}.jpg" for c in range(classes) for i in range(each)]
    return keys, np.repeat(np.arange(classes), each)


def test_a_fifth_is_test_and_a_tenth_of_the_rest_is_val():
    counts = Counter(automatic(*ids(10, 1000), seed=0))

    assert counts["test"] / 10_000 == pytest.approx(0.2, abs=0.012)  # three deviations
    assert counts["val"] / 10_000 == pytest.approx(0.08, abs=0.009)


def test_every_class_is_divided_in_the_same_proportion():
    keys, classes = ids(20, 500)
    split = np.asarray(automatic(keys, classes, seed=0))

    shares = [(split[classes == c] == "test").mean() for c in range(20)]

    assert max(abs(share - 0.2) for share in shares) < 4 * np.sqrt(0.2 * 0.8 / 500)


def test_adding_samples_and_classes_moves_no_other_sample():
    keys, classes = ids(12, 40)
    before = dict(zip(keys, automatic(keys, classes, seed=0), strict=True))
    more, more_classes = ids(14, 90)

    after = dict(zip(more, automatic(more, more_classes, seed=0), strict=True))

    assert {key: after[key] for key in before} == before


def test_only_the_sample_that_saved_its_class_may_move_when_the_class_grows():
    drawn = [key for key in (f"a/{i}" for i in range(500)) if unit_interval(key, "split", "test", 0) < TEST_SHARE]
    alone = automatic(drawn[:5], np.zeros(5, np.int64), seed=0)
    grown = automatic(["a/new", *drawn[:5]], np.zeros(6, np.int64), seed=0)

    assert unit_interval("a/new", "split", "test", 0) > TEST_SHARE
    assert sorted(alone) == ["test"] * 4 + ["train"]
    assert [(a, b) for a, b in zip(alone, grown[1:], strict=True) if a != b] == [("train", "test")]


@pytest.mark.parametrize("each", [1, 2])
def test_classes_of_one_or_two_images_keep_one_to_learn_from(each):
    keys, classes = ids(300, each)
    split = np.asarray(automatic(keys, classes, seed=0))

    assert set(classes[split == "train"].tolist()) == set(range(300))
    assert ("test" in split) == (each == 2)


def test_another_seed_draws_another_split():
    keys, classes = ids(5, 200)

    splits = [automatic(keys, classes, seed=seed) for seed in (0, 0, 1)]

    assert splits[0] == splits[1] != splits[2]


def test_keys_that_are_shared_are_never_separated():
    groups = [f"patient {i // 7}" for i in range(700)]
    split = automatic(groups, np.arange(700) % 3, seed=0)

    assert len(set(zip(groups, split, strict=True))) == 100


def test_unlabelled_samples_are_in_no_split():
    assert automatic(["a", "b"], np.array([-1, -1]), seed=0) == ["", ""]


def test_train_and_test_folders_are_kept_and_val_is_drawn_from_train(tmp_path):
    dataset = open_dataset(
        as_folder(tree({"train/cat": 60, "train/dog": 60, "test/cat": 10, "test/dog": 10}), tmp_path)
    )

    where = Counter((name.split("/")[0], split) for name, split in zip(*columns(dataset), strict=True))
    assert where["test", "test"] == 20
    assert set(where) == {("test", "test"), ("train", "train"), ("train", "val")}
    assert 3 <= where["train", "val"] <= 25
    assert dataset.identity["split_rule"] == "folders, val 10 % of train, seed 0"
    assert dataset.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("training", "validation", "test"), ("Train", "Valid", "TEST")]
)
def test_three_folders_are_the_three_splits_by_any_usual_name(names, tmp_path):
    folders = {f"{name}/{label}": 4 for name in names for label in ("cat", "dog")}

    dataset = open_dataset(as_folder(tree(folders), tmp_path), split_seed=3)

    where = {(name.split("/")[0], split) for name, split in zip(*columns(dataset), strict=True)}
    assert where == set(zip(names, ("train", "val", "test"), strict=True))
    assert dataset.identity["split_rule"] == "folders"


def test_a_flat_folder_is_unlabelled_and_in_no_split(tmp_path):
    dataset = open_dataset(as_folder({f"{i}.jpg": encoded(i) for i in range(5)}, tmp_path), split_seed=5)

    assert dataset.table.target.tolist() == [-1] * 5
    assert set(dataset.table.split) == {""}
    assert dataset.class_names == ()
    assert dataset.identity["split_rule"] == "none"


def test_flat_split_folders_are_unlabelled_but_keep_their_splits(tmp_path):
    files = {f"{name}/{i}.jpg": encoded(i) for name in ("train", "test") for i in range(20)}

    dataset = open_dataset(as_folder(files, tmp_path))

    assert set(dataset.table.target.tolist()) == {-1}
    assert Counter(dataset.table.split) == {"train": 20, "test": 20}


def columns(dataset):
    return dataset.table.sample_id, dataset.table.split


def grouped(groups: int, each: int) -> tuple[list[str], list[str], np.ndarray]:
    """Return ids, groups and classes of `each` samples in every group; a group holds samples of all classes."""
    where = [g for g in range(groups) for _ in range(each)]
    names = [f"{g}/{i % each}.jpg" for i, g in enumerate(where)]
    return names, [f"patient {g}" for g in where], np.arange(len(names)) % 3


def test_no_group_is_ever_in_two_splits():
    names, groups, classes = grouped(200, 7)

    split, rule = divided(names, groups, None, classes, seed=0)

    assert len(set(zip(groups, split, strict=True))) == 200
    assert set(split) == {"train", "val", "test"}
    assert rule == "digest of the group 80/20, val 10 % of train, seed 0"


def test_samples_added_to_old_and_new_groups_move_nobody_and_divide_no_group():
    names, groups, classes = grouped(100, 4)
    before = dict(zip(names, divided(names, groups, None, classes, seed=0)[0], strict=True))
    more_ids, more_groups, more_classes = grouped(160, 9)
    fresh = [i for i, name in enumerate(more_ids) if name not in before]
    names += [more_ids[i] for i in fresh]
    groups += [more_groups[i] for i in fresh]

    split, _ = divided(names, groups, None, np.append(classes, more_classes[fresh]), seed=0)

    after = dict(zip(names, split, strict=True))
    assert len(after) == 160 * 9
    assert {name: after[name] for name in before} == before
    assert len(set(zip(groups, split, strict=True))) == 160


def test_a_sample_without_group_goes_where_its_own_digest_leads():
    names, classes = ids(3, 100)
    groups = [f"g{i % 9}" if i % 2 else "" for i in range(300)]

    alone, _ = divided(names, [""] * 300, None, classes, seed=0)
    mixed, _ = divided(names, groups, None, classes, seed=0)

    assert mixed[::2] == alone[::2]


def test_val_is_drawn_from_a_given_train_by_group():
    names, groups, classes = grouped(100, 5)
    given = ["test" if int(group.split()[1]) % 5 == 0 else "train" for group in groups]

    split, rule = divided(names, groups, given, classes, seed=0, by="given")

    assert len(set(zip(groups, split, strict=True))) == 100
    assert {(a, b) for a, b in zip(given, split, strict=True)} == {
        ("test", "test"), ("train", "train"), ("train", "val")
    }  # fmt: skip
    assert rule == "given, val 10 % of train by group, seed 0"


def test_given_splits_that_divide_a_group_are_refused_with_the_groups():
    with pytest.raises(
        DatasetError, match=r"divide 1 groups, .*: 'ann' in test and train\. Correct the splits, leave them out"
    ):
        divided(["1", "2", "3"], ["ann", "ann", "bob"], ["train", "test", "test"], np.zeros(3, np.int64), seed=0)


def test_val_is_the_test_where_there_is_none_and_a_tenth_of_train_is_val(tmp_path, caplog):
    caplog.set_level("INFO")
    dataset = open_dataset(
        as_folder(tree({"train/cat": 60, "train/dog": 60, "val/cat": 10, "val/dog": 10}), tmp_path), split_seed=2
    )

    where = Counter((name.split("/")[0], split) for name, split in zip(*columns(dataset), strict=True))
    assert where["val", "test"] == 20
    assert set(where) == {("val", "test"), ("train", "train"), ("train", "val")}
    assert 3 <= where["train", "val"] <= 25
    assert dataset.identity["split_rule"] == "folders, val as test, val 10 % of train, seed 2"
    assert "there is no test split, so val is the test, and a tenth of train is held out as val" in caplog.text


def test_the_tenth_that_is_held_out_is_that_of_a_folder_with_a_test(tmp_path):
    with_test = open_dataset(as_folder(tree({"train/cat": 60, "test/cat": 9}), tmp_path / "a"))
    with_val = open_dataset(as_folder(tree({"train/cat": 60, "val/cat": 9}), tmp_path / "b"))

    held = [{n for n, s in zip(*columns(d), strict=True) if s == "val"} for d in (with_test, with_val)]
    assert held[0] == held[1] and held[0]


@pytest.mark.parametrize("folders", [["val"], ["train"], ["test"], ["val", "test"], ["train", "val", "test"]])
def test_no_other_splits_become_the_test(folders, tmp_path):
    dataset = open_dataset(as_folder(tree({f"{name}/{c}": 5 for name in folders for c in "ab"}), tmp_path))

    for name, split in zip(*columns(dataset), strict=True):
        assert split == name.split("/")[0] or (name.startswith("train") and "val" not in folders and split == "val")
    assert VAL_AS_TEST not in dataset.identity["split_rule"]


def test_unlabelled_train_and_val_stay_what_they_are(tmp_path):
    files = {f"{name}/{i}.jpg": encoded(i) for name in ("train", "val") for i in range(20)}

    assert Counter(open_dataset(as_folder(files, tmp_path)).table.split) == {"train": 20, "val": 20}


def test_given_train_and_val_are_divided_by_group():
    names, groups, classes = grouped(100, 5)
    given = ["val" if int(group.split()[1]) % 5 == 0 else "train" for group in groups]

    split, rule = divided(names, groups, given, classes, seed=0, by="given")

    assert len(set(zip(groups, split, strict=True))) == 100
    assert {(a, b) for a, b in zip(given, split, strict=True)} == {
        ("val", "test"),
        ("train", "train"),
        ("train", "val"),
    }
    assert rule == "given, val as test, val 10 % of train by group, seed 0"


def test_a_manifest_of_train_and_val_is_divided_like_folders(tmp_path):
    files = tree({"a": 30, "b": 30})
    as_folder(files, tmp_path)
    lines = [f"{name},{name[0]},{'val' if i % 5 == 0 else 'train'}" for i, name in enumerate(files)]
    (tmp_path / "x.csv").write_text("\n".join(["path,label,split", *lines]))

    dataset = open_dataset(tmp_path / "x.csv")

    given = dict(line.split(",")[::2] for line in lines)
    assert {(given[n], s) for n, s in zip(*columns(dataset), strict=True)} >= {("val", "test"), ("train", "train")}
    assert dataset.identity["split_rule"] == "given, val as test, val 10 % of train, seed 0"


def test_the_splits_of_an_older_version_are_given_where_its_rule_is_named(tmp_path):
    dataset = open_dataset(as_folder(tree({"train/cat": 40, "val/cat": 9}), tmp_path))

    before = as_divided_before(dataset, "folders")

    assert [split for _, split in zip(*columns(before), strict=True)] == [
        n.split("/")[0] for n in dataset.table.sample_id
    ]
    assert before.identity == {**dataset.identity, "split_rule": "folders"}
    for rule in (dataset.identity["split_rule"], "given", "none", "folders, val 10 % of train, seed 0"):
        assert as_divided_before(dataset, rule) is dataset
