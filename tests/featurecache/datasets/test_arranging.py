"""Splits, domains and folders around everything are read from paths; what could be read in two ways is refused or told."""

from __future__ import annotations

from collections import Counter

import pytest

from featurecache.datasets import open_dataset
from featurecache.errors import DatasetError, UnreadableSampleError
from tests.featurecache.datasets.pictures import as_folder, as_tar, as_zip, encoded

PACKERS = {"folder": as_folder, ".zip": as_zip, ".tar": as_tar}
everywhere = pytest.mark.parametrize("kind", list(PACKERS))


def opened(tmp_path, folders, kind="folder", query="", each=4):
    files = {f"{folder}/{n}.jpg": encoded(n) for folder in folders for n in range(each)}
    tmp_path.mkdir(exist_ok=True)
    place = tmp_path / ("data" if kind == "folder" else f"data{kind}")
    return open_dataset(PACKERS[kind](files, place) + query)


def below(*tops, classes=("cat", "dog")):
    return [f"{top}/{name}" for top in tops for name in classes]


def first_split(dataset):
    """Return top folder -> splits of its pictures."""
    found: dict[str, set[str]] = {}
    for name, split in zip(dataset.table.sample_id, dataset.table.split, strict=True):
        found.setdefault(name.split("/")[0], set()).add(split)
    return found


@everywhere
@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("train", "eval"), ("trainset", "testset"), ("seg_train", "seg_test"), ("TRAIN", "holdout"),
     ("train2017", "val2017"), ("train", "dev"), ("brain_train", "brain_test"), ("imgs/train", "imgs/tests")],
)  # fmt: skip
def test_split_folders_of_any_spelling_are_splits_and_no_classes(train, test, kind, tmp_path):
    dataset = opened(tmp_path, below(train, test), kind)

    found = first_split(dataset)
    assert dataset.class_names == ("cat", "dog")
    assert found[test.split("/")[-1]] == {"test"}
    assert found[train.split("/")[-1]] <= {"train", "val"}


def test_what_unusual_names_are_taken_for_is_told(tmp_path, caplog):
    caplog.set_level("INFO")
    opened(tmp_path, below("Training", "seg_test"))

    assert "folders that are splits: Training is train, seg_test is test" in caplog.text


def test_usual_names_are_not_spoken_of(tmp_path, caplog):
    caplog.set_level("INFO")
    opened(tmp_path, below("train", "val", "test"))

    assert [message for message in caplog.messages if not message.startswith("reading the data set")] == []


@everywhere
@pytest.mark.parametrize("around", ["photos", "download/photos.v2", "train_test_split"])
def test_a_folder_around_everything_is_no_class(around, kind, tmp_path, caplog):
    caplog.set_level("INFO")
    plain, split = (
        opened(tmp_path / "a", below(around), kind),
        opened(tmp_path / "b", below(f"{around}/train", f"{around}/test"), kind),
    )

    assert plain.class_names == split.class_names == ("cat", "dog")
    assert plain.table.sample_id[0] == "cat/0.jpg"
    assert split.table.sample_id[0] == "test/cat/0.jpg"
    assert f"everything lies in {around}/, which is no class" in caplog.text


@everywhere
def test_a_picture_that_cannot_be_read_is_named_by_its_sample_id(kind, tmp_path):
    files = {"around/cat/1.jpg": b"no picture", "around/dog/2.jpg": encoded()}
    dataset = open_dataset(PACKERS[kind](files, tmp_path / ("data" if kind == "folder" else f"data{kind}")))

    assert dataset.table.sample_id[0] == "cat/1.jpg"
    with pytest.raises(UnreadableSampleError, match="cannot read 'cat/1.jpg': it is not a picture"):
        dataset.read(0)


@pytest.mark.parametrize("folders", [
    below("train/train", "test/test"), below("seg_train/seg_train", "seg_test/seg_test"), below("train/images", "test/images"),
    below("training/training", "val/validation"), below("train/train", "test"),
])  # fmt: skip
def test_a_split_folder_within_a_split_folder_is_no_class(folders, tmp_path):
    dataset = opened(tmp_path, folders)

    assert dataset.class_names == ("cat", "dog")
    assert "test" in dataset.table.split


def test_pictures_to_be_predicted_beside_splits_are_unlabelled(tmp_path):
    dataset = opened(tmp_path, [*below("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred"])

    rows = [row for row, name in enumerate(dataset.table.sample_id) if name.startswith("seg_pred")]
    assert dataset.class_names == ("cat", "dog")
    assert {(int(dataset.table.target[row]), dataset.table.split[row]) for row in rows} == {(-1, "")}


@everywhere
@pytest.mark.parametrize("tops", [("train", "val", "other"), ("train", "other"), ("Training", "Testing", "cat")])
def test_split_folders_beside_others_are_refused_with_the_way_out(tops, kind, tmp_path):
    with pytest.raises(
        DatasetError, match='mixes the split folders .* beside them.*say that these are classes .*splits=none"'
    ):
        opened(tmp_path, below(*tops), kind)


def test_a_class_called_train_among_several_others_is_told_of(tmp_path, caplog):
    dataset = opened(tmp_path, ["airplane", "car", "train"])

    assert dataset.class_names == ("airplane", "car", "train")
    assert "the folder 'train' is taken as a class, as it lies among 2 others" in caplog.text


@pytest.mark.parametrize("tops", [("train", "car"), ("train", "test", "car"), ("test", "train", "bus", "car")])
def test_classes_that_are_called_like_splits_are_read_where_that_is_said(tops, tmp_path):
    with pytest.raises(DatasetError, match="mixes the split folders"):
        opened(tmp_path, tops)

    dataset = open_dataset(f"{tmp_path / 'data'}?splits=none")

    assert dataset.class_names == tuple(sorted(tops))
    assert open_dataset(dataset.spec).identity == dataset.identity


@pytest.mark.parametrize(
    "tops", [("fold1", "fold2", "fold3"), ("split_0", "split_1"), ("photos_part_1", "photos_part_2")]
)
def test_folds_are_refused_by_name(tops, tmp_path):
    with pytest.raises(
        DatasetError, match=f'{tops[0]}, {tops[1]}.*: folds of a cross-validation .*"holdout.folds={len(tops)}"'
    ):
        opened(tmp_path, below(*tops))


def test_one_fold_with_splits_in_it_is_named_by_itself(tmp_path):
    with pytest.raises(DatasetError, match="Name one of them if it holds splits"):
        opened(tmp_path, below("fold1/train", "fold1/test", "fold2/train", "fold2/test"))

    assert open_dataset(tmp_path / "data/fold1").class_names == ("cat", "dog")


@pytest.mark.parametrize("folders", [
    ["train/train", "train/val", "test/cat"], ["train/fold1", "train/fold2", "test/fold1"],
    ["cat/train", "cat/test", "dog"],
])  # fmt: skip
def test_splits_and_folds_where_classes_belong_are_refused(folders, tmp_path):
    with pytest.raises(DatasetError, match='where class folders belong|below some of its folders.*splits=none"'):
        opened(tmp_path, folders)


def test_split_folders_below_class_folders_are_splits(tmp_path):
    dataset = opened(tmp_path, ["cat/train", "cat/test", "dog/train", "dog/test"])

    assert dataset.class_names == ("cat", "dog")
    tests = {n for n, split in zip(dataset.table.sample_id, dataset.table.split, strict=True) if split == "test"}
    assert tests == {n for n in dataset.table.sample_id if "/test/" in n}


def test_names_that_join_split_and_class_are_refused(tmp_path):
    with pytest.raises(
        DatasetError, match=r"name splits and something more at once \(cat, dog\).*SPLIT/CLASS, such as train/cat"
    ):
        opened(tmp_path, ["cat_train", "cat_test", "dog_train", "dog_test"])


# domains


@everywhere
def test_the_same_classes_under_every_folder_are_domains(kind, tmp_path, caplog):
    caplog.set_level("INFO")
    dataset = opened(tmp_path, below("art_painting", "photo", "sketch"), kind)

    assert dataset.class_names == ("cat", "dog")
    assert Counter(dataset.table.domain) == {"art_painting": 8, "photo": 8, "sketch": 8}
    assert dataset.table.sample_id[0] == "art_painting/cat/0.jpg"
    assert (
        "the same 2 classes lie under each of art_painting, photo, sketch, which are domains; if these are the classes"
        in caplog.text
    )


@pytest.mark.parametrize("folders", [
    below("train/photo", "train/sketch", "test/photo", "test/sketch"),
    below("photo/train", "photo/test", "sketch/train", "sketch/test"),
    below("pacs/photo/train", "pacs/photo/test", "pacs/sketch/train", "pacs/sketch/test"),
])  # fmt: skip
def test_domains_are_found_below_and_above_splits(folders, tmp_path):
    dataset = opened(tmp_path, folders)

    assert dataset.class_names == ("cat", "dog")
    assert {"train", "test"} <= set(dataset.table.split)
    for name, domain, split in zip(dataset.table.sample_id, dataset.table.domain, dataset.table.split, strict=True):
        assert domain in name.split("/")
        assert (split == "test") == ("test" in name.split("/"))


def test_domains_are_classes_where_that_is_said(tmp_path):
    found = opened(tmp_path, below("photo", "sketch"))
    plain = open_dataset(f"{tmp_path / 'data'}?domains=none")

    assert plain.class_names == ("photo", "sketch")
    assert set(plain.table.domain) == {""}
    assert plain.identity["fingerprint"] != found.identity["fingerprint"]
    assert open_dataset(plain.spec).identity == plain.identity


def test_a_class_that_some_domain_lacks_is_told_of(tmp_path, caplog):
    caplog.set_level("INFO")
    dataset = opened(tmp_path, [*below("photo", "sketch"), "photo/owl"])

    assert dataset.class_names == ("cat", "dog", "owl")
    assert "(sketch lacks owl)" in caplog.text


@pytest.mark.parametrize("folders", [
    ["cat/2019", "cat/2020", "dog/2019", "dog/2020"], ["cat/images", "cat/masks", "dog/images", "dog/masks"],
    ["cat/a", "cat/b", "dog/c", "dog/d"], ["cat/a", "dog/a"], [*below("photo", "sketch"), "loose"],
])  # fmt: skip
def test_folders_below_class_folders_that_are_no_classes_make_no_domains(folders, tmp_path):
    dataset = opened(tmp_path, folders)

    assert set(dataset.table.domain) == {""}
    assert set(dataset.class_names) == {folder.split("/")[0] for folder in folders}


def test_domains_that_do_not_look_so_are_read_where_that_is_said(tmp_path):
    dataset = opened(tmp_path, ["photo/cat", "sketch/dog"], query="?domains=folders")

    assert dataset.class_names == ("cat", "dog")
    assert Counter(dataset.table.domain) == {"photo": 4, "sketch": 4}


def test_domains_that_are_asked_for_and_not_there_are_refused(tmp_path):
    with pytest.raises(
        DatasetError, match="was to hold folders of domains, DOMAIN/CLASS, and 'cat/0.jpg' is not in two"
    ):
        opened(tmp_path, ["cat", "dog"], query="?domains=folders")


@pytest.mark.parametrize(("query", "message"), [
    ("?domains=yes", "has domains=yes. It may be auto or folders or none"),
    ("?domain=folders", "has the options domain. Known here: splits, domains"),
    ("?folders", "holds 'folders' where key=value belongs"),
])  # fmt: skip
def test_options_that_are_not_known_are_refused(query, message, tmp_path):
    with pytest.raises(DatasetError, match=message.replace("?", ".")):
        opened(tmp_path, ["cat", "dog"], query=query)


def test_a_question_mark_in_the_name_of_a_folder_is_part_of_it(tmp_path):
    files = {f"{c}/{n}.jpg": encoded(n) for c in ("cat", "dog") for n in range(3)}

    assert open_dataset(as_folder(files, tmp_path / "what?is=this")).class_names == ("cat", "dog")


# names of classes


def test_classes_with_the_names_of_nothing_are_classes(tmp_path):
    names = ("NA", "None", "nan", "null", "a=b", "a|b", "a,b", "[red]x", "{}")

    assert set(opened(tmp_path, names, each=1).class_names) == set(names)


@pytest.mark.parametrize("names", [("Cat", "cat"), ("cat", "cat "), ("1", "01"), ("red fox", "red_fox")])
def test_class_names_that_are_nearly_the_same_are_told_of(names, tmp_path, caplog):
    dataset = opened(tmp_path, [*names, "owl"])

    assert len(dataset.class_names) == 3
    assert "2 classes have names that are nearly the same, and stay classes of their own: " in caplog.text


@pytest.mark.parametrize("names", [("1", "10"), ("cat", "cats"), ("01", "10")])
def test_class_names_that_differ_are_not_spoken_of(names, tmp_path, caplog):
    opened(tmp_path, names)

    assert "nearly the same" not in caplog.text


@everywhere
def test_a_class_written_with_composed_and_with_separate_accents_is_one(kind, tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    dataset = opened(tmp_path, [f"train/{composed}", f"test/{apart}", "train/tea", "test/tea"], kind)

    assert dataset.class_names == (composed, "tea")
    assert {dataset.read(row).size for row in range(len(dataset))} == {(12, 9)}


def test_the_same_pictures_with_the_accents_of_another_system_are_the_same_data(tmp_path):
    ours, theirs = (opened(tmp_path / form, [f"{form}", "tea"]) for form in ("caf\u00e9", "cafe\u0301"))

    assert ours.identity == theirs.identity


def test_two_files_whose_names_differ_in_the_encoding_of_accents_are_refused(tmp_path):
    files = {"cat/\u00e9.jpg": encoded(), "cat/e\u0301.jpg": encoded(1)}

    with pytest.raises(DatasetError, match="1 pictures twice under names that differ only in how accents are encoded"):
        open_dataset(as_folder(files, tmp_path / "data"))


def test_pictures_and_their_masks_are_told_of(tmp_path, caplog):
    opened(tmp_path, ["train/images", "train/masks", "test/images", "test/masks"])

    assert "the classes are the folders images, masks: kinds of file" in caplog.text
