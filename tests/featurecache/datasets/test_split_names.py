"""Names of folders that stand for splits and folds are known in every usual spelling, and class names are not among them."""

from __future__ import annotations

import pytest

from featurecache.datasets._split_names import read_folds, read_split_name, read_splits

NAMES = {
    "train": ["train", "Training", "TRAIN", "trainset", "Train_Set", "TrainSet", "train2017", "seg_train", "train-images",
              "training data", "trainval", "train_val", "cropped_train", "train_256x256", "images_train", "训练集"],
    "val": ["val", "Valid", "VALIDATION", "dev", "devset", "val2017", "validation_set", "development", "valid.images"],
    "test": ["test", "Tests", "Testing", "TestSet", "test_images", "holdout", "hold-out", "held_out", "PrivateTest", "test1",
             "test-dev2017", "TESTSET"],
    "": ["seg_pred", "predict", "unlabeled", "Unlabelled_Images"],
}  # fmt: skip


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NAMES.items() for name in names])
def test_a_usual_name_of_a_split_is_known(split, name):
    assert read_splits({name}) == {name: split}


@pytest.mark.parametrize("name", [
    "cat", "contest", "latest", "trainer", "bullet_train", "train_station", "test_tube", "evaluated", "devil", "rain",
    "validated id", "invalid", "strain", "attest", "images", "data", "train_test_split", "protest", "1", "",
])  # fmt: skip
def test_a_name_that_holds_such_letters_is_none(name):
    assert read_splits({name}) == {}


def test_eval_is_the_test_where_there_is_no_other_and_else_the_validation():
    assert read_splits({"train", "eval"})["eval"] == "test"
    assert read_splits({"train", "val", "evaluation"})["evaluation"] == "test"
    assert read_splits({"train", "eval", "test"})["eval"] == "val"


def test_a_word_that_all_splits_share_says_nothing_and_one_alone_makes_a_class():
    assert read_splits({"brain_train", "brain_test"}) == {"brain_train": "train", "brain_test": "test"}
    assert read_splits({"bullet_train", "steam_train", "car"}) == {}


def test_valid_beside_invalid_is_a_class():
    assert read_splits({"valid", "invalid"}) == {}
    assert read_splits({"valid", "not valid", "unknown"}) == {}
    assert read_splits({"train", "valid"}) == {"train": "train", "valid": "val"}


def test_the_words_beside_a_split_are_told():
    found = read_split_name("cat_train")

    assert found is not None and (found.split, found.rest) == ("train", ("cat",))


@pytest.mark.parametrize("names", [
    {"fold1", "fold2"}, {"Fold_0", "Fold_1"}, {"split_0", "split_1"}, {"cv-1", "cv-2"}, {"kfold1", "kfold2"},
    {"ham10000_images_part_1", "ham10000_images_part_2"}, {"subset0", "subset1"}, {"batch1", "batch2"},
])  # fmt: skip
def test_numbered_parts_are_known(names):
    assert read_folds(names) == sorted(names)


@pytest.mark.parametrize("names", [{"1", "2"}, {"class1", "class2"}, {"level_1", "level_2"}, {"fold", "spindle"}])
def test_numbered_classes_are_no_parts(names):
    assert read_folds(names) == []
