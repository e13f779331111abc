"""The verb `logme` ranks what stores hold by the scores of `logme.py`, from the stores alone."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scipy.stats import weightedtau

import logme
from featurecache import scoring
from featurecache.errors import ConfigError, RunError, StoreContentsError, UnknownNameError
from featurecache.scoring import KeptScores
from featurecache.stores import open_store
from pipelines._rows import labelled_rows
from pipelines.rank import RankConfig, run
from pipelines.scores import SCORES
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from tests.pipelines.stores import NAMES, made_store

ARRAYS = ("embedding", "logits", *NAMES)


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
        features = store.read(entry["array"], rows).astype(np.float64)
        unit = np.sqrt(np.square(targets, dtype=np.float64).mean(axis=0)) if task == "regression" else np.ones(1)
        divided = targets / unit if task == "regression" else targets
        expected = logme.logme(features / np.sqrt((features**2).mean()), divided, task=task) - np.log(unit).mean()
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
    kept = KeptScores(open_store(path), "logme")
    kept.add([{**kept.entries["embedding"], "score": 7.0}])

    again = run(RankConfig(stores=(path,))).json()

    assert again[0]["array"] == "embedding" and again[0]["score"] == 7.0
    assert [e for e in again if e["array"] != "embedding"] == [e for e in first if e["array"] != "embedding"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace('"rows": ', '"rows": 1'),
        lambda text: text.replace('"version": 2', '"version": 1'),
        lambda text: text[:-9],
        lambda text: "[]",
    ],
    ids=["changed", "other formula", "cut off", "something else"],
)
def test_kept_scores_that_are_not_as_they_were_written_are_made_again(tmp_path, spoil):
    path = made_store(tmp_path / "x.zarr")
    first = run(RankConfig(stores=(path,))).json()
    kept = path / "scores" / "logme.json"
    content = kept.read_text()
    kept.write_text(spoil(content))

    assert run(RankConfig(stores=(path,))).json() == first
    assert kept.read_text() == content


def scaled_reads(monkeypatch, factors):
    """Let stores give each array times its factor, as a backbone of another scale would have filled them."""
    opened = scoring.as_numbers
    units = iter(factors)
    monkeypatch.setattr(
        scoring, "as_numbers", lambda values, dtype: opened(values, dtype).astype(np.float64) * next(units)
    )


@pytest.mark.parametrize("factor", [1e-3, 1e-1, 10.0, 100.0, 1e3])
@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_the_unit_of_the_features_changes_neither_scores_nor_their_order(tmp_path, monkeypatch, task, factor):
    plain = run(RankConfig(stores=(made_store(tmp_path / "x.zarr", task),))).json()
    scaled_reads(monkeypatch, itertools.repeat(factor))

    scaled = run(RankConfig(stores=(made_store(tmp_path / "y.zarr", task),))).json()

    assert [entry["array"] for entry in scaled] == [entry["array"] for entry in plain]
    assert [entry["score"] for entry in scaled] == pytest.approx([entry["score"] for entry in plain], rel=1e-9)


def test_the_unit_of_one_array_alone_does_not_move_it_in_the_ranking(tmp_path, monkeypatch):
    plain = run(RankConfig(stores=(made_store(tmp_path / "x.zarr"),))).json()
    scaled_reads(monkeypatch, itertools.cycle([1.0, 1e3, 1e-3, 30.0]))

    scaled = run(RankConfig(stores=(made_store(tmp_path / "y.zarr"),))).json()

    assert [entry["array"] for entry in scaled] == [entry["array"] for entry in plain]


@pytest.mark.parametrize("factor", [1e-4, 1e3])
def test_the_unit_of_a_regressions_values_shifts_all_scores_by_its_logarithm(tmp_path, monkeypatch, factor):
    plain = run(RankConfig(stores=(made_store(tmp_path / "x.zarr", "regression"),))).json()
    pieces = scoring._pieces
    monkeypatch.setattr(scoring, "_pieces", lambda *given: ((at, values * factor) for at, values in pieces(*given)))

    scaled = run(RankConfig(stores=(made_store(tmp_path / "y.zarr", "regression"),))).json()

    expected = [entry["score"] - np.log(factor) for entry in plain]
    assert [entry["array"] for entry in scaled] == [entry["array"] for entry in plain]
    assert [entry["score"] for entry in scaled] == pytest.approx(expected, rel=1e-6)


def test_scores_kept_by_an_older_formula_are_computed_again_and_those_of_other_metrics_stay(tmp_path, monkeypatch):
    path = made_store(tmp_path / "x.zarr")
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "VERSIONS", {})
        for metric in ("logme", "h_score"):
            entry = {"array": "embedding", "layer": None, "token": None, "score": 77.0, "rows": 1}
            KeptScores(open_store(path), metric).add([entry])

    found = run(RankConfig(stores=(path,), metric=("logme", "h_score"))).json()

    scores = next(entry["scores"] for entry in found if entry["array"] == "embedding")
    assert scores["logme"] != 77.0 and scores["h_score"] == 77.0


def test_scores_of_other_rows_are_made_again(tmp_path):
    path, other = made_store(tmp_path / "x.zarr"), made_store(tmp_path / "y.zarr", skipped=(0,))
    first = run(RankConfig(stores=(path,))).json()
    run(RankConfig(stores=(other,)))
    (path / "scores" / "logme.json").write_bytes((other / "scores" / "logme.json").read_bytes())

    assert run(RankConfig(stores=(path,))).json() == first


def test_the_table_says_what_the_numbers_are(tmp_path):
    report = run(RankConfig(stores=(made_store(tmp_path / "x.zarr"),)))

    table = report.tables()[0]

    assert table.columns == ("store", "backbone", "array", "logme", "rows")
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


def test_a_store_of_one_class_has_nothing_to_tell_apart(tmp_path):
    path = made_store(tmp_path / "x.zarr", targets=np.ones(120, np.int64))

    with pytest.raises(StoreContentsError, match="all labelled training rows of .* are alike, so there is nothing to"):
        run(RankConfig(stores=(path,)))


def test_the_first_metric_sorts_and_each_has_a_column(tmp_path):
    report = run(RankConfig(stores=(made_store(tmp_path / "x.zarr"),), metric=("h-score", "logme")))

    table, found = report.tables()[0], report.json()

    assert table.columns == ("store", "backbone", "array", "h_score", "logme", "rows")
    assert [e["score"] for e in found] == sorted((e["scores"]["h_score"] for e in found), reverse=True)
    assert table.rows[0][3:5] == tuple(f"{found[0]['scores'][name]:.4f}" for name in ("h_score", "logme"))
    assert table.notes[0].startswith("h_score: how much of") and table.notes[1].startswith("logme: log evidence")


def test_all_is_every_metric_of_the_room(tmp_path):
    path = made_store(tmp_path / "x.zarr", arrays=ARRAYS)

    report = run(RankConfig(stores=(path,), metric=("all",)))

    columns = report.tables()[0].columns
    assert columns[3] == "logme" and set(columns[3:-1]) == set(SCORES.names())
    assert {e["array"]: set(e["scores"]) for e in report.json()}["logits"] == {"leep", "nce"}
    assert report.json()[-1]["array"] == "logits" and report.json()[-1]["score"] is None
    assert report.tables()[0].rows[-1][3] == ""


def test_all_leaves_out_what_a_store_cannot_give_and_says_why(tmp_path):
    path = made_store(tmp_path / "x.zarr")

    report = run(RankConfig(stores=(path,), metric=("all",)))

    assert set(report.metrics) == set(SCORES.names()) - {"leep", "nce"}
    left = [note for note in report.tables()[0].notes if note.startswith("Left out: ")]
    assert len(left) == 2 and all("--logits --extend" in note for note in left)


def test_metrics_that_were_named_are_refused_all_at_once(tmp_path):
    path = made_store(tmp_path / "x.zarr", "regression")

    with pytest.raises(
        StoreContentsError, match="leep scores classification only(.|\n)*transrate scores classification"
    ):
        run(RankConfig(stores=(path,), metric=("leep", "transrate", "ridge_loo")))


def test_a_metric_without_its_logits_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(StoreContentsError, match="leep needs the logits .* extract-features .* --logits --extend"):
        run(RankConfig(stores=(made_store(tmp_path / "x.zarr"),), metric=("leep",)))


def test_an_unknown_metric_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match="no metric called 'transrat'. Did you mean 'transrate'"):
        run(RankConfig(stores=(made_store(tmp_path / "x.zarr"),), metric=("transrat",)))


def test_stores_of_other_data_are_told_apart(tmp_path):
    one, same = (made_store(tmp_path / name) for name in ("a.zarr", "b.zarr"))
    other = made_store(tmp_path / "c.zarr", "multilabel")

    alike, mixed = (run(RankConfig(stores=stores)).tables()[0].notes for stores in ((one, same), (one, same, other)))

    assert len(alike) == 1
    assert mixed[1].startswith(f"{other} and {one} hold other data, labels or splits")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a store and a folder of ridge runs: one an array, and one on all layers."""
    place = tmp_path_factory.mktemp("trained")
    store = made_store(place / "x.zarr", arrays=ARRAYS)
    words = [(layer, token) for layer in ("0", "1") for token in ("cls", "mean")]
    for layer, token in [*words, ("embedding", "auto"), ("concat", "cls")]:
        train(
            TrainHeadConfig(
                store=store, head="ridge", layers=layer, tokens=token, out=place / f"runs/{layer}-{token}", quiet=True
            )
        )
    return store, place / "runs"


def test_scores_are_held_against_runs_on_the_same_arrays(trained):
    store, runs = trained

    report = run(RankConfig(stores=(store,), metric=("logme", "leep"), against=(runs,)))

    logme_tau, leep_tau = report.agreements
    assert (logme_tau.metric, logme_tau.head, logme_tau.data, logme_tau.points) == ("logme", "ridge", "rows", 5)
    scores = {entry["array"]: entry["scores"].get("logme") for entry in report.json()["scores"]}
    reached = [json.loads(path.read_text()) for path in sorted(runs.glob("*/record.json"))]
    pairs = [(scores[r["arrays"][0]], r["metrics"]["test"]["top1"]["value"]) for r in reached if len(r["arrays"]) == 1]
    assert logme_tau.tau.value == pytest.approx(weightedtau(*zip(*pairs, strict=True)).statistic)
    assert (leep_tau.points, leep_tau.tau) == (1, None)  # the run on the embedding, of which logits are a map


def test_what_is_said_of_the_runs(trained):
    store, runs = trained

    report = run(RankConfig(stores=(store,), against=(runs,)))

    table = report.tables()[1]
    assert table.rows[0][:4] == ("logme", "ridge", "rows", 5)
    assert table.notes[0] == "Runs are compared by top1 on test."
    assert table.notes[1].endswith("concat-cls reads 2 arrays, and a score is of one.")
    assert report.json()["against"][0]["tau"]["low"] <= report.agreements[0].tau.value
    json.dumps(report.json(), allow_nan=False)


def test_runs_of_other_stores_do_not_count(trained, tmp_path):
    _, runs = trained
    other = made_store(tmp_path / "x.zarr", "multilabel")

    report = run(RankConfig(stores=(other,), against=(runs / "0-cls",)))

    assert report.agreements == ()
    assert "learned from a store that is not among these" in report.runs[0]
    assert "needs at least 3 arrays with a run of the same head" in report.runs[1]


def test_a_folder_that_is_no_run_is_refused_before_anything_is_scored(tmp_path):
    path = made_store(tmp_path / "x.zarr")

    with pytest.raises(RunError, match="is not a run folder"):
        run(RankConfig(stores=(path,), against=(tmp_path,)))
    assert not (path / "scores").exists()
