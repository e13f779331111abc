"""Near-duplicates are found from features: copies that were changed a little, and nothing that is merely alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from featurecache.errors import ConfigError
from featurecache.features import ArraySpec
from featurecache.stores import open_store
from pipelines.find_leaks import LeaksConfig, LeaksReport, run
from pipelines.run_protocol import RunProtocolConfig
from pipelines.run_protocol import run as run_protocol
from pipelines.trialling.leaks import Pair, arrays_of, count_kinds, near_duplicates
from tests.pipelines.protocols.samples import balanced, store_of
from tests.pipelines.stores import NAMES, made_store

TEST, TRAIN, PLANTED, WIDTH = 200, 800, 20, 64


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose last training rows are copies of the first test rows, changed a little; classes are clusters, and one
    direction is of all rows alike."""
    draw, rows = np.random.default_rng(5), TEST + TRAIN
    target = balanced(rows)
    scales = np.linspace(3, 0.3, WIDTH)
    features = (draw.normal(size=(3, WIDTH))[target] + draw.normal(size=(rows, WIDTH))) * scales + 10
    features[-PLANTED:] = features[:PLANTED] + 0.2 * draw.normal(size=(PLANTED, WIDTH)) * scales
    features[TEST + 7] = features[150]
    split = ["test"] * TEST + ["train"] * TRAIN
    return store_of(tmp_path_factory.mktemp("stores") / "x.zarr", target, split=split, features=features)


def test_planted_copies_are_found_and_hardly_anything_else(planted):
    report = run(LeaksConfig(store=planted))

    found = {(pair["test"], pair["train"]) for pair in report.pairs}
    true = {(f"{row:03d}.jpg", f"{TEST + TRAIN - PLANTED + row:03d}.jpg") for row in range(PLANTED)}
    true.add(("150.jpg", f"{TEST + 7:03d}.jpg"))
    assert len(found & true) >= 0.9 * len(true)
    assert len(found - true) <= 0.005 * TEST
    assert report.pairs[0]["similarity"] == pytest.approx(1, abs=1e-5) and report.pairs[0]["test"] == "150.jpg"
    assert report.tables()[0].notes[0].endswith("have a near-duplicate among 800")
    assert [pair["test"] for pair in report.pairs if pair["kind"] == "copy"] == ["150.jpg"]
    assert report.tables()[0].notes[1].startswith("1 of them are copies")
    assert "cosine of embedding" in report.json()["similarity"]


def test_copies_of_a_third_of_the_measured_rows_do_not_hide_each_other(tmp_path):
    draw, measured, copied = np.random.default_rng(6), 150, 50
    features = draw.normal(size=(measured + 400, WIDTH))
    features[-copied:] = features[:copied] + 0.1 * draw.normal(size=(copied, WIDTH))
    split = ["test"] * measured + ["train"] * 400
    store = store_of(tmp_path / "x.zarr", balanced(len(features)), split=split, features=features)

    found = near_duplicates(open_store(store), np.arange(measured), np.arange(measured, len(features)))

    pairs = {(pair.measured, pair.learnt) for pair in found}
    true = {(row, len(features) - copied + row) for row in range(copied)}
    assert len(pairs & true) >= 0.9 * copied and not pairs - true


def test_an_embedding_that_is_none_of_the_layers_is_compared_too(tmp_path):
    header = open_store(made_store(tmp_path / "x.zarr")).header
    layers = [header.array(name) for name in NAMES]
    wider = ArraySpec("embedding", (2 * max(spec.tail[0] for spec in layers),), "float16")
    store = SimpleNamespace(header=replace(header, arrays=(wider, *layers)))

    assert arrays_of(store) == [*NAMES, "embedding"]


def test_rows_that_are_only_of_one_class_are_no_pair(planted):
    store = open_store(planted)

    clean = near_duplicates(store, np.arange(PLANTED, 150), np.arange(TEST + 20, TEST + TRAIN - PLANTED))

    assert clean == []


def test_a_protocol_warns_of_them_before_it_trains(planted, tmp_path, caplog):
    config = RunProtocolConfig(protocol="holdout", stores=(planted,), out=tmp_path / "run", epochs=1, quiet=True)

    record = run_protocol(config).record

    (remark,) = (one for one in record["remarks"] if "look like" in one)
    assert (
        "test rows look like rows that are learnt from (1 copy, 20 near-duplicates), such as 150.jpg and 207.jpg"
        in remark
    )
    assert (
        "(similarity 1.000). Similarity: cosine of embedding as stored, centred and whitened over these rows" in remark
    )
    assert (
        "from 0.999 on copies, from 0.5 near-duplicates, below only similar" in remark
        and f"featurecache leaks {planted}" in remark
    )
    assert remark in caplog.text


def test_all_layers_are_compared_and_a_split_is_not_compared_with_itself(tmp_path):
    store = open_store(made_store(tmp_path / "x.zarr"))

    assert arrays_of(store) == sorted(NAMES)
    with pytest.raises(ConfigError, match="test would be compared with itself"):
        LeaksConfig(store=store.path, train=("train", "test"))


def test_a_pair_is_called_what_its_similarity_allows():
    pairs = [Pair(0, 1, similarity, 2.0) for similarity in (0.24, 0.5, 0.998, 0.999, 1.0)]

    assert [pair.kind for pair in pairs] == ["similar", "near-duplicate", "near-duplicate", "copy", "copy"]
    assert count_kinds(pairs) == "2 copies, 2 near-duplicates, 1 only similar"
    report = LeaksReport(
        "x", (9, 9), [{"test": "a", "train": "b", "similarity": 0.24, "kind": "similar", "labels": "equal"}]
    )
    assert report.tables()[0].notes[:2] == [
        "0 of 9 rows have a near-duplicate among 9",
        "1 more stand out and are only similar",
    ]
