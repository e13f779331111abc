"""An extraction keeps what a plain forward pass gives, once, and says what it did."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cli
import logme
import save_features
from featurecache.backbones import load_backbone
from featurecache.features import parse_layer_array
from featurecache.stores import open_store
from save_features import backbone_options, run
from tests.extraction_samples import BATCH, Forwards, lasting, pictures, settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """A float32 store of every layer; tests leave it as it is."""
    out = folder.parent / "finished.zarr"
    run(settings(folder, out, tokens="cls+mean", dtype="float32", logits=True))
    return out


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Forwards:
    return Forwards().watch(monkeypatch)


def batches(folder: Path, transform) -> list[torch.Tensor]:
    files = sorted(folder.rglob("*.png"))
    images = [transform(Image.open(file).convert("RGB")) for file in files]
    return [torch.stack(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]


def test_the_store_holds_bit_for_bit_what_a_plain_forward_pass_gives(folder, finished):
    model = load_backbone("timm:test_vit", backbone_options(settings(folder, finished)))
    tokens, vectors, logits = [], [], []
    with torch.inference_mode():
        for images in batches(folder, model.transform):
            tokens.append(model.module.forward_features(images))
            vectors.append(model.module.forward_head(tokens[-1], pre_logits=True))
            logits.append(model.module.forward_head(tokens[-1]))

    store = open_store(finished)

    np.testing.assert_array_equal(store.to_numpy("embedding"), torch.cat(vectors).numpy())
    np.testing.assert_array_equal(store.to_numpy("logits"), torch.cat(logits).numpy())
    np.testing.assert_array_equal(store.to_numpy("layers/cls/05"), torch.cat(tokens)[:, 0].numpy())


def test_inner_layers_pass_through_the_final_norm(folder, finished):
    model = load_backbone("timm:test_vit", backbone_options(settings(folder, finished)))
    with torch.inference_mode():
        found = [
            model.module.forward_intermediates(
                images, indices=[2], norm=True, return_prefix_tokens=True, intermediates_only=True, output_fmt="NLC"
            )[0]
            for images in batches(folder, model.transform)
        ]

    store = open_store(finished)

    np.testing.assert_array_equal(
        store.to_numpy("layers/cls/02"), torch.cat([prefix[:, 0] for _, prefix in found]).numpy()
    )
    np.testing.assert_allclose(
        store.to_numpy("layers/mean/02"), torch.cat([patches.mean(1) for patches, _ in found]).numpy(), atol=1e-6
    )


def test_rows_are_the_samples_in_order_of_their_ids(folder, finished):
    table = open_store(finished).table()

    assert list(table.sample_id) == sorted(f"{p.parent.name}/{p.name}" for p in folder.rglob("*.png"))
    assert list(table.target) == [0] * 20 + [1] * 20


def test_the_identical_command_computes_nothing_and_says_so(folder, tmp_path, forwards):
    config = settings(folder, tmp_path / "x.zarr")
    run(config)
    before, asked = lasting(config.out), len(forwards.requests)

    report = run(config)

    assert report.was_finished
    assert report.tables()[0].notes[0] == f"{config.out} holds all of this already: nothing to do"
    assert len(forwards.requests) == asked
    assert lasting(config.out) == before


@pytest.mark.parametrize("less", [{"layers": "2,4-5"}, {"layers": "none"}, {"tokens": "mean"}, {"logits": False}])
def test_less_than_is_there_is_nothing_to_do(folder, finished, forwards, less):
    wanted = {"tokens": "cls+mean", "dtype": "float32", "logits": True, **less}

    report = run(settings(folder, finished, **wanted))

    assert "holds all of this already, and more than that" in report.tables()[0].notes[0]
    assert forwards.requests == []


def test_layers_none_keeps_the_embedding_alone(folder, tmp_path):
    config = settings(folder, tmp_path / "x.zarr", layers="none")

    run(config)

    store = open_store(config.out)
    assert [spec.name for spec in store.header.arrays] == ["embedding"]
    assert store.header.layers == ()
    assert store.header.tokens == ()


def test_scores_equal_those_of_the_whole_matrix_at_once(finished):
    store = open_store(finished)
    train = np.asarray(store.table().split) == "train"
    targets = np.asarray(store.table().target)[train]

    scores = json.loads((finished / "scores/logme.json").read_text())["scores"]

    assert [score["array"] for score in scores] == [s.name for s in store.header.arrays if s.name != "logits"]
    for score in scores:
        at_once = logme.logme(store.to_numpy(score["array"], split="train"), targets, rescale=True)
        assert score["score"] == pytest.approx(at_once, abs=1e-9)
        assert (score["token"], score["layer"]) == (parse_layer_array(score["array"]) or (None, None))
        assert score["rows"] == train.sum()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_the_dtype_costs_is_told_for_every_array(folder, finished, tmp_path, dtype):
    report = run(settings(folder, tmp_path / "x.zarr", tokens="cls+mean", dtype=dtype))

    exact, kept = open_store(finished), open_store(tmp_path / "x.zarr")
    for spec in kept.header.arrays:
        whole, rounded = (store.to_numpy(spec.name).astype(np.float64) for store in (exact, kept))
        lost = np.linalg.norm(whole - rounded) / np.linalg.norm(whole)
        assert report.rounding[spec.name] == pytest.approx(lost, rel=1e-4)
        assert (lost > 0) == (dtype != "float32")
    (table,) = report.tables()
    assert table.columns == ("array", "rounding error", "LogME of the training rows")
    assert len(table.rows) == len(kept.header.arrays)


def test_what_the_dtype_costs_is_told_before_the_long_run(tmp_path, monkeypatch, caplog):
    data = pictures(tmp_path / "many", cat=40, dog=40)
    monkeypatch.setattr(save_features, "PROBED", 32)
    caplog.set_level("INFO", "featurecache")

    run(settings(data, tmp_path / "x.zarr", layers="last"))

    (told,) = [line for line in caplog.messages if "of their size" in line]
    assert re.match(
        r"as float16 the first \d+ rows lose [1-4]\.\de-04 \(\S+\) to [1-4]\.\de-04 \(\S+\) of their size", told
    )


def test_images_without_labels_are_extracted_and_not_scored(tmp_path):
    flat = pictures(tmp_path / "flat", animals=20) / "animals"
    config = settings(flat, tmp_path / "x.zarr", layers="last")

    report = run(config)

    assert report.scores == []
    assert open_store(config.out).finished
    assert not (config.out / "scores").exists()


def test_images_of_one_class_are_extracted_and_not_scored(tmp_path):
    config = settings(pictures(tmp_path / "one", cat=20), tmp_path / "x.zarr", layers="last")

    report = run(config)

    assert report.scores == []
    assert open_store(config.out).finished


def test_bfloat16_is_kept_as_uint16_and_read_as_numbers(folder, finished, tmp_path):
    config = settings(folder, tmp_path / "x.zarr", layers="last", dtype="bfloat16")

    run(config)

    store, exact = open_store(config.out), open_store(finished).to_numpy("embedding")
    assert store.read("embedding", slice(0, 1)).dtype == np.uint16
    np.testing.assert_array_equal(
        store.to_numpy("embedding"), torch.from_numpy(exact).to(torch.bfloat16).float().numpy()
    )


def test_the_command_line_tells_rows_seconds_and_scores(folder, tmp_path):
    out = str(tmp_path / "x.zarr")
    call = ["extract-features", str(folder), "--backbone", "demo", "--out", out, "--layers", "4-5"]

    first, again = (CliRunner().invoke(cli.main, call) for _ in range(2))

    assert f"{out}: 40 rows, 40 computed in " in first.stdout
    assert "layers/cls/05" in first.stdout
    assert "went on" not in first.stdout
    assert f"{out} holds all of this already: nothing to do" in again.stdout


def test_the_result_can_be_read_by_machines(folder, tmp_path):
    out = str(tmp_path / "x.zarr")
    call = ["extract-features", str(folder), "--backbone", "demo", "--out", out, "--layers", "none", "--json"]

    told = json.loads(CliRunner().invoke(cli.main, call).stdout)

    assert (told["rows"], told["kept"], told["recomputed"], told["skipped"]) == (40, 0, 0, 0)
    assert [score["array"] for score in told["scores"]] == ["embedding"]


def test_provenance_tells_when_where_and_by_what_the_features_were_made(finished):
    line, end = map(json.loads, (finished / "provenance.jsonl").read_text().splitlines())

    assert (end["rows"], end["rounding"]["embedding"]) == (40, 0.0)
    assert end["seconds"] >= sum(end["waited"].values()) > 0
    assert {"time", "command", "data", "origin", "device", "environment"} <= line.keys()
    assert line["environment"]["versions"]["torch"] == torch.__version__
    assert line["origin"]["weights"] == "random:0"
