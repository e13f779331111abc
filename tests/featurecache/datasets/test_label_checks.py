"""Labels that may not mean what they are read as are named, with the option that reads them; plain classes are not."""

from __future__ import annotations

import pytest

from featurecache.datasets import open_dataset
from featurecache.datasets._label_checks import find_separator, warn_of_odd_classes
from tests.featurecache.datasets.pictures import as_folder, encoded

PARTS = ("scab", "rust", "frog_eye")
COMBINED = [[name for place, name in enumerate(PARTS) if n >> place & 1] or ["healthy"] for n in range(8)]
WORDS = {" ": "space", ",": "comma", ";": "semicolon", "/": "slash", "+": "plus"}


def manifest(tmp_path, labels):
    as_folder({f"{i}.jpg": encoded(i) for i in range(len(labels))}, tmp_path)
    path = tmp_path / "few.csv"
    path.write_text("path,label\n" + "".join(f'{i}.jpg,"{label}"\n' for i, label in enumerate(labels)))
    return str(path)


@pytest.mark.parametrize("separator", WORDS)
@pytest.mark.parametrize("task", [None, "multilabel"])
def test_cells_that_hold_several_labels_are_named_with_the_option_that_reads_them(separator, task, tmp_path, caplog):
    spec = manifest(tmp_path, [separator.join(parts) for parts in COMBINED] * 2)

    open_dataset(spec, task=task)

    assert f"?label_separator={WORDS[separator]}" in caplog.text
    caplog.clear()
    dataset = open_dataset(f"{spec}?label_separator={WORDS[separator]}", task=task)
    assert set(dataset.class_names) == {*PARTS, "healthy"}
    assert "label_separator" not in caplog.text


def test_several_labels_without_a_bar_are_said_to_be_one_each(tmp_path, caplog):
    open_dataset(manifest(tmp_path, ["cat", "dog"]), task="multilabel")

    assert "no cell of `label` holds a bar, so every cell is one label" in caplog.text


@pytest.mark.parametrize(
    "classes",
    [
        ["golden retriever", "labrador retriever", "tabby cat", "siamese cat", "pug"],
        ["red car", "blue car", "red bus", "blue bus"],
        ["animal/cat", "animal/dog", "plant/oak", "plant/rose", "stone"],
        ["cat", "dog"],
        ["Stage II, late", "Stage I, early"],
    ],
)
def test_names_of_several_words_are_no_combinations(classes, caplog):
    assert find_separator(classes) is None
    warn_of_odd_classes(classes * 3, sure=False)
    assert not caplog.text


@pytest.mark.parametrize(("classes", "rows", "said"), [(12, 16, True), (12, 30, False), (9, 9, False)])
def test_nearly_as_many_classes_as_rows_are_named(classes, rows, said, caplog):
    warn_of_odd_classes([f"{2 + n % classes}" for n in range(rows)], sure=False)

    assert (f"{rows} labelled rows have {classes} classes, such as '10', '11', '12'" in caplog.text) is said


def test_who_says_that_they_are_classes_is_not_asked_again(caplog):
    warn_of_odd_classes([",".join(parts) for parts in COMBINED] + [f"{n}" for n in range(40)], sure=True)

    assert not caplog.text
