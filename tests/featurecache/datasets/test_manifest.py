"""Manifests: rows, splits, domains and groups from a table; every mistake in it named with its line, all at once."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from featurecache.datasets import open_dataset
from featurecache.errors import DatasetError, DatasetNotFoundError, UnreadableSampleError
from tests.featurecache.datasets.contract import DatasetContract
from tests.featurecache.datasets.pictures import as_folder, as_zip, encoded, tree
from tests.shared_data import SHARED, needs_shared

FILES = tree({"cat": 25, "dog": 25})
FEW = {f"{i}.jpg": encoded(i) for i in range(6)}


class TestCsv(DatasetContract):
    suffix = ".csv"

    def spec(self, folder):
        as_folder(FILES, folder / "pets")
        rows = [(name, name.split("/")[0]) for name in FILES]
        path = folder / f"pets/pets{self.suffix}"
        if self.suffix == ".parquet":
            paths, labels = zip(*rows, strict=True)
            parquet.write_table(pa.table({"path": paths, "label": labels}), path)
        else:
            path.write_text(
                "\n".join(("\t" if self.suffix == ".tsv" else ",").join(r) for r in [("path", "label"), *rows])
            )
        return str(path)


class TestTsv(TestCsv):
    suffix = ".tsv"


class TestParquet(TestCsv):
    suffix = ".parquet"


@pytest.fixture
def manifest(tmp_path):
    """Return what writes a manifest beside six pictures, and its path."""
    as_folder(FEW, tmp_path)

    def written(*lines: str, name: str = "few.csv") -> str:
        (tmp_path / name).write_text("\n".join(lines))
        return str(tmp_path / name)

    return written


def labelled(labels: list[str], header: str = "path,label") -> list[str]:
    return [header, *(f"{i}.jpg,{label}" for i, label in enumerate(labels))]


def test_a_manifest_without_more_columns_has_the_fingerprint_of_its_folder(tmp_path):
    as_folder(FILES, tmp_path / "pets")
    lines = ["path,label", *(f"{name},{name.split('/')[0]}" for name in reversed(FILES))]
    (tmp_path / "pets/list.csv").write_text("\n".join(lines))

    ours, folder = open_dataset(tmp_path / "pets/list.csv"), open_dataset(tmp_path / "pets")

    assert ours.identity == {**folder.identity, "name": "list"}
    assert list(ours.table.split) == list(folder.table.split)


def test_all_columns_are_kept_and_rows_sorted_by_sample_id(manifest):
    dataset = open_dataset(
        manifest(
            "sample_id,label,path,split,domain,group", "z,cat,0.jpg,train,photo,ann", "", "a,dog,./1.jpg,TEST,sketch,"
        )
    )

    table = dataset.table
    assert list(zip(table.sample_id, table.target, table.split, table.domain, table.group, strict=True)) == [
        ("a", 1, "test", "sketch", ""), ("z", 0, "train", "photo", "ann"),
    ]  # fmt: skip
    assert dataset.class_names == ("cat", "dog")
    assert dataset.identity["split_rule"] == "given, val 10 % of train by group, seed 0"
    np.testing.assert_array_equal(
        np.asarray(dataset.read(1)), np.asarray(open_dataset(manifest(*labelled(["x"]))).read(0))
    )


@pytest.mark.parametrize("column", ["split", "domain", "group"])
def test_another_split_domain_or_group_is_another_identity(column, manifest):
    value = {"split": "train", "domain": "photo", "group": "ann"}[column]
    other = {"split": "test", "domain": "sketch", "group": "bob"}[column]
    specs = [manifest(f"path,label,{column}", f"0.jpg,cat,{value}", f"1.jpg,dog,{v}") for v in (value,)]
    before = open_dataset(specs[0]).identity

    after = open_dataset(manifest(f"path,label,{column}", f"0.jpg,cat,{value}", f"1.jpg,dog,{other}")).identity

    assert after["fingerprint"] != before["fingerprint"]
    json.dumps(after)


def test_whole_numbers_are_classes_in_the_order_of_their_values(manifest):
    dataset = open_dataset(manifest(*labelled(["10", "2", "2", "10", "1"])))

    assert dataset.class_names == ("1", "2", "10")
    assert dataset.table.target.tolist() == [2, 1, 1, 2, 0]


def test_an_empty_label_is_none_and_its_row_is_in_no_split(manifest):
    dataset = open_dataset(manifest(*labelled(["cat", "", "dog"])))

    assert dataset.table.target.tolist() == [0, -1, 1]
    assert dataset.table.split[1] == ""


def test_a_manifest_of_paths_alone_is_unlabelled(manifest):
    dataset = open_dataset(manifest("path", "0.jpg", "1.jpg"))

    assert (dataset.table.target.tolist(), dataset.class_names) == ([-1, -1], ())
    assert dataset.identity["split_rule"] == "none"


def test_several_labels_are_joined_by_a_bar(manifest):
    dataset = open_dataset(manifest(*labelled(["cat|dog", "dog", "", "|", " owl | cat"])))

    assert (dataset.task, dataset.class_names) == ("multilabel", ("cat", "dog", "owl"))
    assert dataset.table.target.dtype == np.uint8
    assert dataset.table.target.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert (dataset.table.split[2], "" in dataset.table.split[3:]) == ("", False)


def test_one_label_each_is_multi_label_where_that_is_said(manifest):
    spec = manifest(*labelled(["cat", "dog"]))

    assert open_dataset(spec, task="multilabel").table.target.tolist() == [[1, 0], [0, 1]]
    assert open_dataset(manifest(*labelled(["a|b", "c"])), task="classification").class_names == ("a|b", "c")


def test_columns_of_zeros_and_ones_are_one_label_each(manifest):
    dataset = open_dataset(manifest(*labelled(["1,0", "true,1", ","], "path,label_dog,label_cat")))

    assert (dataset.task, dataset.class_names) == ("multilabel", ("dog", "cat"))
    assert dataset.table.target.tolist() == [[1, 0], [1, 1], [0, 0]]
    assert dataset.table.split[2] == ""


def test_numbers_are_predicted_where_that_is_said(manifest):
    spec = manifest(*labelled(["0.5,1", "-2e3,", "nan,2", "7,8"], "path,label,label_b"))

    dataset = open_dataset(spec, task="regression")

    assert (dataset.task, dataset.class_names) == ("regression", ("label", "b"))
    assert dataset.table.target.dtype == np.float32
    np.testing.assert_array_equal(dataset.table.target, np.float32([[0.5, 1], [-2000, np.nan], [np.nan, 2], [7, 8]]))
    assert [name == "" for name in dataset.table.split] == [False, True, True, False]


def test_types_of_parquet_are_read_as_what_they_say(tmp_path):
    as_folder(FEW, tmp_path)
    columns = {"path": ["0.jpg", "1.jpg"], "label_a": [True, False], "label_b": [0, 1], "vector": [[1.0], [2.0]]}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")

    assert open_dataset(tmp_path / "x.parquet").table.target.tolist() == [[1, 0], [0, 1]]

    parquet.write_table(pa.table({"path": ["0.jpg", "1.jpg"], "label": [0.25, None]}), tmp_path / "x.parquet")
    assert open_dataset(tmp_path / "x.parquet", task="regression").table.target[0, 0] == 0.25


def test_given_classes_set_the_numbers_and_one_without_images_is_reported(manifest, caplog):
    dataset = open_dataset(manifest(*labelled(["cat", "dog"])) + "?classes=owl,dog,cat")

    assert dataset.class_names == ("owl", "dog", "cat")
    assert dataset.table.target.tolist() == [2, 1]
    assert open_dataset(dataset.spec).identity == dataset.identity
    assert "in no split: 1 of 3 classes ('owl')" in caplog.text


def test_absolute_paths_and_paths_into_folders_are_read(manifest, tmp_path):
    as_folder({"deep/er/a.jpg": encoded(9)}, tmp_path)

    dataset = open_dataset(manifest("path,label", f"{tmp_path}/deep/er/a.jpg,x", "deep/../deep/er/a.jpg,y"))

    np.testing.assert_array_equal(np.asarray(dataset.read(0)), np.asarray(dataset.read(1)))
    assert "deep/er/a.jpg" in dataset.table.sample_id


REFUSED = {
    "no path": (["file,label", "0.jpg,cat"], {}, "no column `path`; its columns are file, label"),
    "typo": (["paht,label", "0.jpg,cat"], {}, "Did you mean 'paht'?"),
    "one twice": (["path,label, Label", "0.jpg,a,b"], {}, "has the columns label twice; its columns are path, label, Label"),
    "twice a column": (["path,label,label", "0.jpg,a,b"], {}, "the columns label twice"),
    "empty": ([""], {}, "no column `path`; its columns are none"),
    "header alone": (["path,label"], {}, "has no rows below its header"),
    "climbing": (["path,label", "0.jpg,a", "../x.jpg,a", "a/../../y.jpg,a"], {},
                 "climb out of the folder of the manifest (2): line 3: '../x.jpg', line 4: 'a/../../y.jpg'"),
    "missing": (["path,label", "0.jpg,a", "", "gone.jpg,a"], {}, "lead to no file (1): line 4: 'gone.jpg'"),
    "a folder": (["path,label", ".,a"], {}, "lead to no file (1): line 2: '.'"),
    "no such path": (["path,label", ",a"], {}, "rows without a path (1): line 2: ''"),
    "twice a path": (["path,label", "0.jpg,a", "./0.jpg,b"], {}, "not unique (2): line 2: '0.jpg', line 3: '0.jpg'"),
    "twice an id": (["path,sample_id", "0.jpg,a", "1.jpg,a"], {}, "not unique (2): line 2: 'a', line 3: 'a'"),
    "no id": (["path,sample_id", "0.jpg,a", "1.jpg,"], {}, "rows without a sample_id (1): line 3: '1.jpg'"),
    "split word": (["path,label,split", "0.jpg,a,train", "1.jpg,a,later"], {},
                   "words for splits other than train, val, test and their usual names (1): line 3: 'later'"),
    "no split": (["path,label,split", "0.jpg,a,train", "1.jpg,a,"], {},
                 "labelled rows without a split, where others have one (1): line 3: '1.jpg'"),
    "mixed kinds": (["path,label", "0.jpg,3", "1.jpg,cat"], {},
                    "labels that are numbers beside names (task classification takes all as names) (2): line 2: '3'"),
    "numbers": (["path,label", "0.jpg,3", "1.jpg,0.5"], {}, "no whole numbers (say task regression, or task"),
    "outside": (["path,label", "0.jpg,cat", "1.jpg,emu"], {"query": "?classes=cat,dog"},
                "labels outside the classes cat, dog (1): line 3: 'emu'"),
    "one outside": (["path,label", "0.jpg,cat|emu"], {"query": "?classes=cat"},
                    "labels outside the classes cat (1): line 2: 'emu'"),
    "no number": (["path,label", "0.jpg,1", "1.jpg,cat", "2.jpg,inf"], {"task": "regression"},
                  "no finite numbers (2): line 3: 'cat', line 4: 'inf'"),
    "no 0 or 1": (["path,label_a", "0.jpg,1", "1.jpg,2"], {}, "values of label_a other than 0 and 1 (1): line 3: '2'"),
    "partly": (["path,label_a,label_b", "0.jpg,1,"], {}, "some labels and not all (1): line 2: '0.jpg'"),
    "one class of several": (["path,label_a", "0.jpg,1"], {"task": "classification"}, "not one class: use label"),
    "both": (["path,label,label_b", "0.jpg,1,0"], {}, "both label and label_b: only regression has both"),
    "nothing to learn": (["path", "0.jpg"], {"task": "regression"}, "there is no column with labels"),
    "classes of numbers": (["path,label", "0.jpg,1"], {"task": "regression", "query": "?classes=1"},
                           "classes are given, and regression has none"),
    "other columns": (["path,label_a", "0.jpg,1"], {"query": "?classes=b"}, "label_NAME for a, but the classes b"),
    "lost": (["path,label,split", "0.jpg,a|b,train", "1.jpg,,test"], {},
             "rows in a split without labels (write | for none of the labels) (1): line 3: 'test'"),
    "ragged": (["path,label", "0.jpg,a", "", "1.jpg,a,b", "2.jpg"], {},
               "2 broken lines: line 4: '1.jpg,a,b' has 3 columns, not 2; line 5: '2.jpg' has 1 columns, not 2"),
    "unknown option": (["path,label", "0.jpg,a"], {"query": "?clases=a"}, "has the options clases. Known here: classes"),
    "no value": (["path,label", "0.jpg,a"], {"query": "?classes"}, "'classes' where key=value belongs"),
    "divided group": (["path,label,split,group", "0.jpg,a,train,g", "1.jpg,a,test,g"], {},
                      "divide 1 groups, and samples of a group must stay together: 'g' in test and train"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_mistakes_are_refused_with_their_lines(name, manifest):
    lines, options, message = REFUSED[name]
    spec = manifest(*lines) + options.get("query", "")

    with pytest.raises(DatasetError, match=re.escape(message)):
        open_dataset(spec, task=options.get("task"))


def test_all_mistakes_come_at_once(manifest):
    lines = ["path,label,split", "../x.jpg,a,train", "gone.jpg,3,later", "0.jpg,a,train", "0.jpg,a,train"]

    with pytest.raises(DatasetError) as refused:
        open_dataset(manifest(*lines))

    assert len(str(refused.value).split("\n  - ")) == 1 + 5


def test_of_many_mistakes_of_a_kind_five_are_named_and_all_counted(manifest):
    lines = ["path,label", *(f"gone/{i}.jpg,a" for i in range(70))]

    with pytest.raises(DatasetError, match=r"no file \(70\): line 2: 'gone/0.jpg', .*line 6: 'gone/4.jpg', \.\.\.$"):
        open_dataset(manifest(*lines))


def test_rows_of_parquet_are_counted_as_rows(tmp_path):
    parquet.write_table(pa.table({"path": ["gone.jpg"], "label": ["a"]}), tmp_path / "x.parquet")

    with pytest.raises(DatasetError, match=r"no file \(1\): row 1: 'gone.jpg'"):
        open_dataset(tmp_path / "x.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_bytes_that_are_no_table_are_refused(suffix, tmp_path):
    (tmp_path / f"x{suffix}").write_bytes(b"path,label\n\xff\xfe.jpg,a\n" if suffix == ".csv" else b"path\n\xff\n")

    with pytest.raises(DatasetError, match=f"is not a {'Parquet' if suffix == '.parquet' else suffix[1:]} file"):
        open_dataset(tmp_path / f"x{suffix}")


def test_a_parquet_column_that_is_no_text_is_refused(tmp_path):
    parquet.write_table(pa.table({"path": ["a.jpg"], "label": [["a", "b"]]}), tmp_path / "x.parquet")

    with pytest.raises(DatasetError, match="the column label is of type list<.*Write text or numbers"):
        open_dataset(tmp_path / "x.parquet")


def test_columns_that_mean_nothing_are_named_with_what_they_may_have_meant(manifest, caplog):
    open_dataset(manifest("path,label,domian,width", "0.jpg,a,x,3"))

    assert "columns that are not used: 'domian' Did you mean 'domain'?, 'width'" in caplog.text


def test_a_missing_manifest_is_answered_with_what_can_be_named():
    with pytest.raises(DatasetNotFoundError, match="nowhere.csv is not a file. Name a .csv, .tsv or .parquet"):
        open_dataset("nowhere.csv")


def test_names_look_at_no_file_and_a_missing_one_is_found_when_it_is_read(manifest):
    dataset = open_dataset(manifest("path,label", "gone.jpg,a", "0.jpg,a"), fingerprint="names")

    assert dataset.identity["fingerprint"].startswith("names:")
    with pytest.raises(UnreadableSampleError, match="cannot read 'gone.jpg': No such file"):
        dataset.read(1)


def test_a_byte_order_mark_quotes_and_windows_lines_are_read(tmp_path):
    as_folder({"a, b.jpg": encoded()}, tmp_path)
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbfpath,label\r\n"a, b.jpg","a ""cat"""\r\n')

    dataset = open_dataset(tmp_path / "x.csv")

    assert (list(dataset.table.sample_id), dataset.class_names) == (["a, b.jpg"], ('a "cat"',))


def test_a_folder_whose_name_ends_like_a_manifest_is_a_folder(tmp_path):
    assert len(open_dataset(as_folder(FILES, tmp_path / "pets.csv"))) == 50


def test_an_archive_is_no_manifest(tmp_path):
    with pytest.raises(DatasetError, match="is not a csv file"):
        open_dataset("manifest:" + as_zip(FILES, tmp_path / "pets.csv"))


@needs_shared
def test_blood_cells_are_divided_by_photograph(tmp_path):
    import zipfile

    with zipfile.ZipFile(SHARED / "data/blood-cells/blood_cells.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        archive.extractall(tmp_path)
    lines = [f"{name},{name.split('/')[1]},{name.split('/')[-1].rsplit('_', 1)[0]}" for name in names]
    (tmp_path / "cells.csv").write_text("\n".join(["path,label,group", *lines]))

    table = open_dataset(tmp_path / "cells.csv").table

    assert len(set(zip(table.group, table.split, strict=True))) == len(set(table.group)) > 100
    counts = Counter(table.split)
    assert counts["test"] / len(table) == pytest.approx(0.2, abs=0.06)
