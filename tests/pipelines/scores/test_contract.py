"""What every score of the room keeps, whatever it computes; a new file is tested without an edit here."""

from __future__ import annotations

import inspect
import json
import logging

import numpy as np
import pytest

from featurecache import scoring
from featurecache.scoring import KeptScores
from featurecache.stores import open_store
from pipelines.scores import SCORES, Rows, _rows, refusal, scores_of
from tests.pipelines.scores.samples import clusters, score_of
from tests.pipelines.stores import NAMES, made_store

ARRAYS = ("embedding", "logits", *NAMES)
COMPUTED = [name for name in SCORES.names() if hasattr(SCORES.load(name), "score")]


@pytest.fixture
def store(tmp_path):
    return open_store(made_store(tmp_path / "x.zarr", arrays=ARRAYS))


@pytest.mark.parametrize("name", SCORES.names())
class TestEveryScore:
    def test_its_file_says_what_it_is(self, name):
        room = SCORES.load(name)
        sentence, paper = SCORES.summary(name)
        own = [f for _, f in inspect.getmembers(room, inspect.isfunction) if f.__module__ == room.__name__]

        assert room.CONSUMES in ("features", "logits")
        assert set(room.TASKS) <= {"classification", "multilabel", "regression"}
        assert paper and ": " in sentence and sentence.endswith("higher is better")
        assert [f.__name__ for f in own if not f.__name__.startswith("_")] in (["score"], ["saved"])

    def test_every_array_that_it_consumes_has_one_finite_score(self, store, name):
        arrays = {"logits"} if SCORES.load(name).CONSUMES == "logits" else {"embedding", *NAMES}

        entries = scores_of(store, [name])[name]

        assert {entry["array"] for entry in entries} == arrays
        assert all(np.isfinite(entry["score"]) and entry["rows"] == 72 for entry in entries)
        assert {(e["token"], e["layer"]) for e in entries if "/" in e["array"]} <= {
            (token, layer) for token in ("cls", "mean") for layer in (0, 1)
        }

    def test_a_second_call_reads_no_features(self, store, name, monkeypatch):
        first = scores_of(store, [name])
        monkeypatch.setattr(store, "read", lambda *_: pytest.fail("features are read again"))

        assert scores_of(store, [name]) == first
        kept = json.loads((store.path / "scores" / f"{name}.json").read_text())["scores"]
        assert sorted(kept, key=str) == sorted(first[name], key=str)

    def test_only_arrays_without_a_score_are_scored(self, store, name):
        first, kept = scores_of(store, [name])[name], KeptScores(store, name)
        marked = [{**entry, "score": 7.0} for entry in first[1:]]
        kept.add(marked)

        again = scores_of(store, [name])[name]

        assert again[0] == first[0] and again[1:] == marked

    def test_tasks_that_it_does_not_know_are_refused(self, tmp_path, name):
        room = SCORES.load(name)
        for task in ("classification", "multilabel", "regression"):
            reason = refusal(open_store(made_store(tmp_path / f"{task}.zarr", task, arrays=ARRAYS)), name)

            assert (reason == "") == (task in room.TASKS)
            assert not reason or f"holds a {task} task" in reason


@pytest.mark.parametrize("name", COMPUTED)
class TestEveryScoreOfRows:
    def test_telling_features_score_higher_than_vague_ones(self, name):
        far, near = (score_of(name, *clusters(distance=distance)) for distance in (3, 0.3))

        assert far > near

    def test_neither_the_order_of_rows_nor_the_size_of_pieces_matters(self, name, monkeypatch):
        values, labels = clusters()
        order = np.random.default_rng(1).permutation(len(labels))
        whole = score_of(name, values, labels)

        monkeypatch.setattr(_rows, "PIECE", 7)

        assert score_of(name, values[order], labels[order]) == pytest.approx(whole, rel=1e-9)

    def test_rows_are_read_in_pieces(self, name, monkeypatch):
        values, labels = clusters()
        largest = []
        monkeypatch.setattr(_rows, "PIECE", 7)
        rows = Rows(
            read=lambda places: largest.append(len(places)) or values[places],
            targets=labels, width=6, num_targets=4,
        )  # fmt: skip

        SCORES.load(name).score(rows)

        assert max(largest) == 7

    def test_a_class_that_never_occurs_changes_nothing(self, name):
        values, labels = clusters()
        gap = np.where(labels >= 2, labels + 1, labels)

        assert score_of(name, values, gap) == pytest.approx(score_of(name, values, labels), rel=1e-9)

    def test_stored_halves_are_computed_in_float64(self, name):
        values, labels = clusters()
        halves = values.astype(np.float16)

        assert score_of(name, halves, labels) == score_of(name, halves.astype(np.float64), labels)

    def test_constant_features_still_have_a_score(self, name):
        values, labels = clusters()

        assert np.isfinite(score_of(name, np.full_like(values, 3.0), labels))


def test_scores_that_cannot_be_kept_are_told_and_returned(store, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scoring, "write_atomic", full)
    with caplog.at_level(logging.WARNING, "featurecache"):
        entries = scores_of(store, ["h_score"])["h_score"]

    assert len(entries) == 5
    assert "scores are not kept in" in caplog.text and "No space left on device" in caplog.text


def test_scores_of_one_array_share_one_pass_for_its_moments(store, monkeypatch):
    reads = []
    read = store.read
    monkeypatch.setattr(store, "read", lambda array, rows: reads.append(array) or read(array, rows))
    scores_of(store, ["h_score", "transrate"])
    together = reads.count("embedding")

    assert together == 1 + 3  # the moments, and the rows of each of three classes


def test_logits_that_are_not_there_are_refused_with_the_way_out(tmp_path):
    store = open_store(made_store(tmp_path / "x.zarr"))

    assert "needs the logits of the backbone's own head" in refusal(store, "leep")
    assert refusal(store, "nce").endswith("holds none. Run its extract-features command again with --logits --extend.")
    assert refusal(store, "h_score") == ""
