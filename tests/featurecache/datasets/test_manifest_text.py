"""Manifests as spreadsheets and scripts write them: delimiters, encodings, line ends, names of columns, paths of Windows."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from featurecache.datasets import open_dataset
from featurecache.errors import DatasetError, UnreadableSampleError
from tests.featurecache.datasets.pictures import as_folder, encoded

IDS = ["cats/0.jpg", "cats/1.jpg", "dogs/2.jpg"]
LABELS = ["cat", "cat", "dög"]


@pytest.fixture
def write(tmp_path):
    """Return what writes bytes or text as a manifest beside three pictures, and its path."""
    as_folder({name: encoded(i) for i, name in enumerate(IDS)}, tmp_path)

    def written(content: str | bytes, name: str = "few.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return written


def table(delimiter: str = ",", header: tuple[str, str] = ("path", "label"), end: str = "\n") -> str:
    return end.join(delimiter.join(row) for row in [header, *zip(IDS, LABELS, strict=True)]) + end


def assert_read(spec: str) -> None:
    dataset = open_dataset(spec)
    assert list(dataset.table.sample_id) == IDS
    assert [dataset.class_names[k] for k in dataset.table.target] == LABELS
    again = open_dataset(dataset.spec)
    assert again.identity == dataset.identity and again.spec == dataset.spec


WRITTEN = {
    "semicolons": table(";"),
    "tabs": table("\t"),
    "bars": table("|"),
    "Excel's first line": "sep=;\r\n" + table(";", end="\r\n"),
    "Excel's first line of tabs": "sep=\t\r\n" + table("\t", end="\r\n"),
    "CRLF": table(end="\r\n"),
    "CR": table(end="\r"),
    "UTF-8 with a mark": b"\xef\xbb\xbf" + table().encode(),
    "UTF-16 little-endian": b"\xff\xfe" + table("\t", end="\r\n").encode("utf-16-le"),
    "UTF-16 big-endian": b"\xfe\xff" + table(";").encode("utf-16-be"),
    "UTF-32": table().encode("utf-32"),
    "capitals and spaces": table(header=(" Path", "LABEL ")),
    "quoted": '"path","label"\n' + "".join(f'"{i}","{name}"\n' for i, name in zip(IDS, LABELS, strict=True)),
    "an index of pandas": ",path,label\n" + "".join(f"{n},{row}\n" for n, row in enumerate(table().splitlines()[1:])),
    "cells left empty": table() + ",\n , \n\n",
    "delimiters at the end": table().replace("\n", ",\n"),
    "delimiters at the end of rows": table().replace("\n", ",,\n").replace("path,label,,", "path,label"),
    "backslashes": table().replace("/", "\\"),
    "backslashes from here": table().replace("cats/", ".\\cats\\").replace("dogs/", ".\\dogs\\"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_spreadsheets_write_is_read(name, write):
    assert_read(write(WRITTEN[name]))


@pytest.mark.parametrize("name", ["semicolons", "UTF-16 little-endian", "CR"])
def test_a_tsv_is_read_alike(name, write):
    assert_read(write(WRITTEN[name], "few.tsv"))


@pytest.mark.parametrize(
    ("content", "query"),
    [
        (table().encode("cp1252"), "encoding=cp1252"),
        (table().encode("utf-16-le"), "encoding=utf-16-le"),
        (table("#"), "delimiter=hash"),
        (table("~"), "delimiter=~"),
        (table(";", ("filename", "class")), "path=filename&label=class"),
        (table(header=("Image Path", "Class")), "label=class&path=image path"),
    ],
)
def test_what_cannot_be_seen_is_said_in_the_spec(content, query, write):
    assert_read(f"{write(content)}?{query}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table().encode("cp1252"), r"line 4 holds the byte 0xf6\. Save it as UTF-8.*few.csv\?encoding=cp1252.*reads 'dogs/2.jpg,dög'"),
        (table().encode("utf-16-le").replace(b"\xf6\0", b"o\0"), r"as in UTF-16\. Give few.csv\?encoding=utf-16-le"),
        (table(";", ("file", "category")), r"columns are file, category\..*few.csv\?path=file&label=category"),
        ("Filename;label;class;Subset\n", r"Rename columns, or name them: few.csv\?path=Filename&split=Subset\."),
        (table(header=("Filename", "y")), r"few.csv\?path=Filename&label=y"),
        (b"PK\x03\x04rest", r"is not a csv file of text: it is a \.zip, as the workbooks of Excel"),
        ('path,label\n"a.jpg,x\nb.jpg,y\n', "row that begins in line 2 cannot be read: unexpected end of data"),
        ('path,label\n0.jpg,a\n"a"b.jpg,x\n', "row that begins in line 3 cannot be read"),
        ("path,label\ncats/0,a\n", r"no file \(the first does with \.jpg behind it: write paths with.*\(1\): line 2: 'cats/0'"),
        ("path,label\n2.jpg,a\n", r"no file \(the first lies in dogs: write paths from the folder of the manifest on\) \(1\)"),
        ("path,label\nC:\\photos\\1.jpg,a\n", r"paths with a drive letter.*\(1\): line 2: 'C:"),
        ("path,label\n..\\1.jpg,a\n", r"climb out of the folder of the manifest \(1\): line 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_answered_with_the_way_out(content, message, write):
    with pytest.raises(DatasetError, match=message):
        open_dataset(write(content))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("encoding=klingon", "no encoding 'klingon'. Common ones are utf-8"),
        ("encoding=ascii", "ascii text: line 4 holds the byte 0xc3. Give the encoding it was saved in"),
        ("delimiter=word", "the delimiter 'word' is not one character. Words for some: comma, semicolon"),
        ("label=clas", "has no column 'clas', which label=clas asks for; its columns are path, label."),
        ("label=", "gives no value for label"),
    ],
)
def test_options_that_cannot_be_are_refused(query, message, write):
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"{write(table())}?{query}")


def test_lines_are_named_rightly_behind_a_line_break_within_quotes(write):
    lines = ["path,label,note", 'cats/0.jpg,cat,"two', 'lines"', "", "cats/1.jpg,cat,x", "gone.jpg,dog,y", "a,b"]

    with pytest.raises(DatasetError, match=r"1 broken lines: line 7: 'a,b' has 2 columns, not 3"):
        open_dataset(write("\r\n".join(lines)))
    with pytest.raises(DatasetError, match=r"no file \(1\): line 6: 'gone.jpg'"):
        open_dataset(write("\r\n".join(lines[:-1])))
    with pytest.raises(DatasetError, match=r"no file \(1\): line 7: 'gone.jpg'"):
        open_dataset(write("\r\n".join(["sep=,", *lines[:-1]])))


def test_a_file_that_has_a_backslash_in_its_name_keeps_it(write, tmp_path):
    as_folder({"a\\b.jpg": encoded(7)}, tmp_path)

    assert list(open_dataset(write("path\na\\b.jpg\ncats/0.jpg\n")).table.sample_id) == ["a\\b.jpg", "cats/0.jpg"]


def test_columns_that_are_called_otherwise_are_named_with_what_reads_them(write, caplog):
    open_dataset(write("path,class,patient\ncats/0.jpg,cat,ann\n"))

    assert "'class' (few.csv?label=class reads it as label)" in caplog.text
    assert "'patient' (few.csv?group=patient reads it as group)" in caplog.text


def test_labels_keep_the_case_of_their_columns(write):
    assert open_dataset(write("Path,LABEL_Cat\ncats/0.jpg,1\n")).class_names == ("Cat",)


NAMES = ["nan", "NaN", "None", "NA", "null", "1", "01", "inf", "1_000", "cat"]


def test_a_class_name_is_text_whatever_it_looks_like(write, tmp_path, caplog):
    as_folder({f"{i}.jpg": encoded(i) for i in range(len(NAMES))}, tmp_path)
    lines = "".join(f"{i}.jpg,{name}\n" for i, name in enumerate(NAMES))

    dataset = open_dataset(write("path,label\n" + lines), task="classification")

    assert [dataset.class_names[k] for k in dataset.table.target] == NAMES
    assert "read as names of classes, like any text: 'NA', 'NaN', 'None', 'nan', 'null'." in caplog.text
    assert "Leave the cell empty where there is no label" in caplog.text


def test_names_that_python_takes_for_numbers_are_names_without_a_word(write):
    dataset = open_dataset(write("path,label\ncats/0.jpg,nan\ncats/1.jpg,inf\ndogs/2.jpg,1_0\n"))

    assert dataset.class_names == ("1_0", "inf", "nan")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1.0, float("nan"), 2.0]), ["1", "", "2"]),
        (pa.array(["nan", None, "cat"]), ["nan", "", "cat"]),
        (pa.array([1, None, 2]), ["1", "", "2"]),
    ],
)
def test_missing_labels_of_parquet_are_missing_and_the_word_nan_is_a_name(values, expected, write, tmp_path):
    write("")
    parquet.write_table(pa.table({"path": IDS, "label": values}), tmp_path / "few.parquet")

    dataset = open_dataset(tmp_path / "few.parquet")

    assert [dataset.class_names[k] if k >= 0 else "" for k in dataset.table.target] == expected


def test_nothing_but_regular_files_is_opened(write, tmp_path):
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    spec = write("path,label\nzero.jpg,cat\ncats/0.jpg,dog\n")

    with pytest.raises(DatasetError, match=r"lead to no file \(1\): line 2: 'zero.jpg'"):
        open_dataset(spec)
    with pytest.raises(UnreadableSampleError, match="cannot read 'zero.jpg': it is a device, not a file"):
        open_dataset(spec, fingerprint="names").read(1)


@pytest.mark.parametrize(
    ("query", "separator"),
    [("space", " "), ("comma", ","), ("semicolon", ";"), (";", ";"), ("::", "::"), ("bar", "|")],
)
def test_several_labels_in_a_cell_are_read_by_the_separator_that_is_named(query, separator, write):
    cells = [f"scab{separator}rust", "rust", "|"]
    text = "path,label\n" + "".join(f'{i},"{cell}"\n' for i, cell in zip(IDS, cells, strict=True))

    dataset = open_dataset(f"{write(text)}?label_separator={query}")

    assert (dataset.task, dataset.class_names) == ("multilabel", ("rust", "scab"))
    np.testing.assert_array_equal(dataset.table.target, [[1, 1], [1, 0], [0, 0]])
    assert open_dataset(dataset.spec).identity == dataset.identity


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_separator_for_one_class_or_number_is_refused(task, write):
    with pytest.raises(
        DatasetError, match=re.escape("label_separator is given, which is for several labels in a cell")
    ):
        open_dataset(write("path,label\ncats/0.jpg,1\n") + "?label_separator=comma", task=task)


def test_a_separator_without_a_column_for_it_is_refused(write):
    with pytest.raises(DatasetError, match="there is no column label that alone holds the labels"):
        open_dataset(write("path,label_a\ncats/0.jpg,1\n") + "?label_separator=comma")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["0,5", "1,5"], r"no finite numbers, write a decimal point, not a comma \(2\): line 2: '0,5'"),
        (["1.5", "NA"], r"no finite numbers, leave the cell empty where there is none \(1\): line 3: 'NA'"),
        (["1.5", "tall"], r"no finite numbers \(1\): line 3: 'tall'"),
    ],
)
def test_numbers_that_are_written_otherwise_are_answered_with_how_to_write_them(values, message, write):
    rows = "".join(f"{i};{value}\n" for i, value in zip(IDS, values, strict=False))

    with pytest.raises(DatasetError, match=message):
        open_dataset(write("path;label\n" + rows), task="regression")


def test_classes_that_differ_in_case_alone_are_named(write, caplog):
    open_dataset(write("path,label\ncats/0.jpg,Cat\ncats/1.jpg,cat\ndogs/2.jpg,dog\n"))

    assert "2 classes have names that are nearly the same, and stay classes of their own: 'Cat', 'cat'" in caplog.text
