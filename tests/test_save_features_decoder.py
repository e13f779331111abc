"""Features of two decoders are two kinds of features: told apart, refused together, computed again and predicted by their own."""

from __future__ import annotations

import dataclasses
import sys
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

from featurecache import recomputing
from featurecache.backbones import load_backbone
from featurecache.datasets import open_dataset
from featurecache.errors import ConfigError, StoreMismatchError
from featurecache.mending import OF_THE_IMAGES
from featurecache.recomputing import largest_difference
from featurecache.stores import open_store
from pipelines.embed import EmbedConfig
from pipelines.embed import run as embed
from pipelines.predict import Predictor
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from save_features import SaveFeaturesConfig, run
from tests.featurecache.sources.jpegs import jpeg

pytest.importorskip("simplejpeg", reason="needs simplejpeg: pip install featurecache[fast]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder") / "photos"
    for number in range(24):
        place = folder / ("ant", "bee")[number % 2] / f"{number:02d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(jpeg(("noise", "edges")[number % 2], (50, 44), seed=number))
    return folder


def settings(folder, out, **changes) -> SaveFeaturesConfig:
    given = {"backbone": "demo", "layers": "5", "dtype": "float32", "batch_size": 8, "decoder": "simplejpeg", **changes}
    return SaveFeaturesConfig(data=str(folder), out=out, quiet=True, **given)


@pytest.fixture(scope="module")
def fast(folder):
    out = folder.parent / "fast.zarr"
    run(settings(folder, out))
    return out


def test_the_identity_names_the_decoder_and_the_features_differ_a_little(folder, fast, tmp_path):
    run(settings(folder, tmp_path / "exact.zarr", decoder="pillow"))

    ours, exact = open_store(fast), open_store(tmp_path / "exact.zarr")
    assert ours.header.backbone == {**exact.header.backbone, "decoder": "simplejpeg"}
    one, other = (store.read("embedding", slice(None)) for store in (ours, exact))
    assert not np.array_equal(one, other)
    assert np.linalg.norm(one - other) < 0.05 * np.linalg.norm(other)


@pytest.mark.parametrize(
    ("held", "asked", "seen"), [("pillow", "simplejpeg", "None"), ("simplejpeg", "pillow", "'simplejpeg'")]
)
def test_features_of_two_decoders_do_not_share_a_store(folder, tmp_path, held, asked, seen):
    out = tmp_path / "x.zarr"
    run(settings(folder, out, decoder=held))

    with pytest.raises(StoreMismatchError, match=rf"backbone\.decoder: the store has {seen}"):
        run(settings(folder, out, decoder=asked))


def test_the_same_command_again_does_nothing(folder, fast):
    assert run(settings(folder, fast)).was_finished


def test_rows_are_computed_again_by_the_decoder_that_made_them(folder, fast):
    found = largest_difference(load_backbone("demo"), open_dataset(folder), open_store(fast))

    assert found is not None
    assert found.absolute == 0


def test_another_version_of_the_decoder_counts_for_features_that_it_made(fast, monkeypatch):
    now = recomputing.environment()
    now["versions"]["simplejpeg"] = "0.1"
    monkeypatch.setattr(recomputing, "environment", lambda: now)

    notes = open_store(fast).notes

    assert recomputing.changes(notes, "cpu", "simplejpeg") == {"simplejpeg": (version("simplejpeg"), "0.1")}
    assert recomputing.changes(notes, "cpu", "pillow") == {}


def test_a_run_predicts_with_the_decoder_of_its_store(folder, fast, tmp_path):
    train(TrainHeadConfig(store=fast, head="ridge", layers="5", out=tmp_path / "run"))
    predictor, data = Predictor.load(tmp_path / "run"), open_dataset(folder)

    logits, _ = predictor.logits(data, batch_size=8, on_error="stop")
    exact, _ = predictor.logits(dataclasses.replace(data, content=lambda row: None), batch_size=8, on_error="stop")
    again = predictor.predict([folder])

    assert not np.array_equal(logits, exact)
    chosen = [predictor.class_names[place] for place in logits.argmax(1).tolist()]
    assert [prediction.answer for prediction in again] == chosen
    (single,) = predictor.predict([folder / "ant" / "00.jpg"])
    assert dict(single.top) == pytest.approx(dict(again[0].top), abs=1e-5)
    (picture,) = predictor.predict([Image.open(folder / "ant" / "00.jpg")])
    assert picture.answer in predictor.class_names


def test_a_run_on_views_predicts_from_the_clean_picture(folder, tmp_path):
    run(settings(folder, tmp_path / "views.zarr", views=2))
    train(TrainHeadConfig(store=tmp_path / "views.zarr", head="ridge", layers="5", out=tmp_path / "run"))

    predictor = Predictor.load(tmp_path / "run")

    assert set(OF_THE_IMAGES) <= predictor.record["features"]["backbone"].keys()
    assert len(predictor.predict([folder])) == 24


def test_embed_takes_the_decoder_too(folder, fast, tmp_path):
    embed(
        EmbedConfig(
            data=str(folder), backbone="demo", out=tmp_path / "x.npy", batch_size=8, decoder="simplejpeg", quiet=True
        )
    )

    assert np.array_equal(np.load(tmp_path / "x.npy"), open_store(fast).read("embedding", slice(None)))


def test_without_simplejpeg_nothing_is_built_or_written(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    monkeypatch.setattr("save_features.load_backbone", lambda *_: pytest.fail("a backbone was built"))

    with pytest.raises(ConfigError, match=r"pip install featurecache\[fast\]"):
        run(settings(folder, tmp_path / "x.zarr"))

    assert not (tmp_path / "x.zarr").exists()
