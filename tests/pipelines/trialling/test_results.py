"""Tables, LaTeX and curve of a protocol's record: what is uncertain is said, and names have any letters."""

from __future__ import annotations

import pytest

from pipelines.trialling.results import tables, write_results

NAME = r"a_b$x_$ 50%~\{}^"


def record(low=-0.01, high=0.03, trials=2):
    place = {"protocol": "few-shot:1", "store": NAME, "shots": 1, "test": "test"}
    over = {"deviation": 0.1, "trials_low": 0.2, "trials_high": 0.9} if trials > 1 else dict.fromkeys(
        ("deviation", "trials_low", "trials_high")
    )  # fmt: skip
    results = [
        {**place, "head": head, "trials": trials, "mean": 0.5, "low": 0.4, "high": 0.6, **over}
        for head in ("linear", "knn")
    ]
    gap = {
        **place,
        "head": "knn",
        "against": "linear",
        "difference": 0.01,
        "low": low,
        "high": high,
        "share_above_zero": 0.7,
    }
    lines = [{**place, "head": "linear", "rows_test": rows} for rows in (1200, 1300)[:trials]]
    return {
        "protocol": "few-shot:1", "metric": "top1", "heads": ["linear", "knn"], "results": results, "differences": [gap],
        "trials": lines,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "said"), [(-0.01, 0.03, "includes 0"), (0.002, 0.03, ""), (None, None, "includes 0")]
)
def test_a_difference_whose_interval_includes_0_is_marked(low, high, said):
    (row,) = tables(record(low, high))[1].rows

    assert row[-1] == said and row[-3] == "+0.0100"
    assert row[-2] == ("" if low is None else f"[{low:+.4f}, {high:+.4f}]")


@pytest.mark.parametrize(("trials", "note"), [
    (1, "1,200 test rows, drawn by groups where there are groups"),
    (2, "means over 2 trials; 1,200 to 1,300 test rows, drawn by groups where there are groups"),
])  # fmt: skip
def test_the_table_says_how_many_rows_were_tested(trials, note):
    assert tables(record(trials=trials))[0].notes == [note]


def test_names_of_any_letters_are_drawn_and_escaped(tmp_path):
    write_results(tmp_path, record(), "shots")

    tex = (tmp_path / "results.tex").read_text()
    assert r"a\_b\$x\_\$ 50\%\textasciitilde{}\textbackslash{}\{\}\textasciicircum{}" in tex
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG") and b"</svg>" in (
        tmp_path / "curve.svg"
    ).read_bytes()
