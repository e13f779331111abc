"""The verb `logme` ranks what stores hold by the scores of `logme.py`, from the stores alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

import logme
from featurecache.errors import ConfigError, StoreContentsError
from featurecache.stores import open_store
from pipelines._rows import labelled_rows
from pipelines.rank import RankConfig, run
from tests.pipelines.stores import NAMES, made_store


def test_arrays_of_all_stores_are_ranked_best_first(digits_store, tmp_path):
    other = made_store(tmp_path / "x.zarr")

    found = run(RankConfig(stores=(digits_store, other))).json()

    assert len(found) == 7 + 5
    scores = [entry["score"] for entry in found]
    assert scores == sorted(scores, reverse=True)
    assert {entry["store"] for entry in found} == {str(digits_store), str(other)}
    assert {entry["backbone"] for entry in found} == {"demo", "made"}


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_scores_are_those_of_logme_on_the_training_rows(tmp_path, task):
    path = made_store(tmp_path / "x.zarr", task)
    store = open_store(path)
    rows = labelled_rows(store, "train")

    found = run(RankConfig(stores=(path,))).json()

    targets = np.asarray(store.table().target)[rows]
    for entry in found:
        expected = logme.logme(store.read(entry["array"], rows).astype(np.float64), targets, task=task)
        assert entry["score"] == pytest.approx(expected, rel=1e-8)
        assert entry["rows"] == len(rows)
        assert np.mean(entry["evidence"]) == pytest.approx(entry["score"])


def test_layers_and_tokens_are_named(tmp_path):
    found = run(RankConfig(stores=(made_store(tmp_path / "x.zarr"),))).json()

    assert {(entry["array"], entry["token"], entry["layer"]) for entry in found} == {
        ("embedding", None, None), *((name, name.split("/")[1], int(name[-2:])) for name in NAMES)
    }  # fmt: skip


def test_scores_are_kept_and_read_again(tmp_path):
    path = made_store(tmp_path / "x.zarr")
    first = run(RankConfig(stores=(path,))).json()
    kept = path / "scores" / "logme.json"
    marked = [
        {**entry, "score": 7.0} if entry["array"] == "embedding" else entry for entry in json.loads(kept.read_text())
    ]
    kept.write_text(json.dumps(marked))

    again = run(RankConfig(stores=(path,))).json()

    assert again[0]["array"] == "embedding" and again[0]["score"] == 7.0
    assert [e for e in again if e["array"] != "embedding"] == [e for e in first if e["array"] != "embedding"]


def test_the_table_says_what_the_numbers_are(tmp_path):
    report = run(RankConfig(stores=(made_store(tmp_path / "x.zarr"),)))

    table = report.tables()[0]

    assert table.columns == ("store", "backbone", "array", "LogME", "rows")
    assert table.rows[0][3] == f"{report.json()[0]['score']:.4f}"
    assert "higher is better" in table.notes[0]


def test_an_unfinished_store_is_refused_with_the_rows_it_lacks(tmp_path):
    path = made_store(tmp_path / "x.zarr", stop_at=64)

    with pytest.raises(StoreContentsError, match="is not finished: 56 rows are missing. Run the same extract-features"):
        run(RankConfig(stores=(path,)))


def test_a_store_without_labels_has_nothing_to_score(tmp_path):
    path = made_store(tmp_path / "x.zarr", targets=np.full(120, -1), split=[""] * 120)

    with pytest.raises(StoreContentsError, match="holds no labelled training rows, so there is nothing to score"):
        run(RankConfig(stores=(path,)))


def test_at_least_one_store_is_named():
    with pytest.raises(ConfigError, match="name at least one store"):
        RankConfig(stores=())
