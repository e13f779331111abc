"""Tables and reports at a glance: as text, in a notebook and as data frames."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pytest

from featurecache.errors import FeatureCacheError
from featurecache.reports import SHOWN_ROWS, Displayed, Table

TABLE = Table("Scores", ("layer", "logme"), [("cls/03", "0.5"), ("cls/11", "1.25")], ["Higher is better."])


@dataclass(frozen=True, slots=True)
class Found(Displayed):
    """A report with a table and one without rows."""

    entries: Any
    shown: tuple[Table, ...] = (Table("Empty", ("a",), [], ["Nothing."]), TABLE)

    def tables(self) -> list[Table]:
        return list(self.shown)

    def json(self) -> Any:
        return self.entries


def test_a_table_is_aligned_text_with_title_and_notes():
    assert repr(TABLE) == "Scores\nlayer   logme\ncls/03  0.5\ncls/11  1.25\nHigher is better."


def test_of_a_long_table_the_first_rows_are_displayed_and_the_others_counted():
    long = Table("", ("n",), [(number,) for number in range(SHOWN_ROWS + 5)])

    assert repr(long).endswith(f"{SHOWN_ROWS - 1}\n... 5 more rows")
    assert "<p>... 5 more rows</p>" in long._repr_html_() and f"<td>{SHOWN_ROWS}</td>" not in long._repr_html_()


def test_no_text_of_a_table_is_html():
    hostile = "<script>alert('&')</script>"

    shown = Table(hostile, (hostile,), [(hostile,)], [hostile])._repr_html_()

    assert shown.count("&lt;script&gt;alert(&#x27;&amp;&#x27;)") == 4 and "<script" not in shown


def test_a_report_displays_its_tables_and_not_its_fields():
    report = Found({"a": 1})

    assert repr(report) == f"Nothing.\n\n{TABLE!r}"
    assert report._repr_html_() == "".join(table._repr_html_() for table in report.tables())
    assert repr(Found(None, ())) == "<Found>"


def test_a_table_of_numbers_is_a_frame_of_numbers():
    pytest.importorskip("pandas")
    frame = Found({"a": 1}).to_pandas()

    assert frame.columns.tolist() == ["layer", "logme"]
    assert frame.logme.tolist() == [0.5, 1.25] and frame.layer.tolist() == ["cls/03", "cls/11"]
    with pytest.raises(FeatureCacheError, match=r"there is no table 1; there are: 0 \(Scores\)"):
        Found({}).to_pandas(1)


def test_of_a_list_of_entries_every_value_is_in_the_frame():
    pytest.importorskip("pandas")

    frame = Found([{"layer": 3, "scores": {"logme": 0.5}}, {"layer": 4, "scores": {}}]).to_pandas()

    assert frame.columns.tolist() == ["layer", "scores.logme"] and frame.layer.tolist() == [3, 4]


def test_without_pandas_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)

    for show in (TABLE.to_pandas, Found([]).to_pandas):
        with pytest.raises(FeatureCacheError, match=r"to_pandas needs pandas.*pip install 'featurecache\[pandas\]'"):
            show()
