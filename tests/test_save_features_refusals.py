"""What cannot be kept is refused with its name and the way out; what was committed stays."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from featurecache.casting import WORST_ERROR
from featurecache.errors import BackboneError, FeatureValueError, StoreBusyError, UnreadableSampleError
from featurecache.features import parse_indices
from featurecache.requests import parse_layers
from featurecache.stores import open_store
from save_features import run
from tests.extraction_samples import BATCH, Forwards, lasting, pictures, settings
from tests.featurecache.datasets.pictures import encoded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Forwards:
    return Forwards().watch(monkeypatch)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_nan_and_infinity_are_refused_with_sample_and_layer(folder, tmp_path, forwards, value, dtype):
    config = settings(folder, tmp_path / "x.zarr", dtype=dtype)
    forwards.change = put(value, "layers/cls/03", row=21)

    with pytest.raises(FeatureValueError, match=r"NaN or infinity in layers/cls/03 for 'dog/001\.png'"):
        run(config)


def test_the_batches_before_a_refused_one_are_kept(folder, tmp_path, forwards):
    config = settings(folder, tmp_path / "x.zarr")
    forwards.change = put(math.nan, "embedding", row=39)

    with pytest.raises(FeatureValueError, match=r"embedding for 'dog/019\.png'"):
        run(config)

    assert open_store(config.out).missing() == [range(2 * BATCH, 40)]
    forwards.change = lambda outputs, number: None
    assert run(config).kept == 2 * BATCH


def test_what_float16_cannot_hold_is_refused_with_layer_sample_and_the_dtypes_that_can(folder, tmp_path, forwards):
    forwards.change = put(70000.0, "layers/cls/02", row=17)

    with pytest.raises(
        FeatureValueError,
        match=r"layers/cls/02 of 'cat/017\.png' reaches 7e\+04, which float16 cannot hold\. Give --dtype bfloat16",
    ):
        run(settings(folder, tmp_path / "x.zarr"))
    run(settings(folder, tmp_path / "wide.zarr", dtype="bfloat16"))


def test_a_layer_that_loses_too_much_in_float16_is_refused(folder, tmp_path, forwards):
    def shrink(outputs: dict[str, Tensor], number: int) -> None:
        outputs["layers/cls/02"] *= 1e-7

    forwards.change = shrink

    with pytest.raises(FeatureValueError, match=rf"layers/cls/02 loses .* \(at most {WORST_ERROR['float16']:.0e}"):
        run(settings(folder, tmp_path / "x.zarr"))


@pytest.mark.parametrize("kind", ["truncated JPEG", "truncated PNG", "empty"])
def test_an_image_that_cannot_be_read_stops_the_run_with_path_and_reason(tmp_path, kind):
    config = settings(with_broken(tmp_path, kind), tmp_path / "x.zarr", layers="5")

    with pytest.raises(UnreadableSampleError, match=r"cannot read 'cat/017\.png': .+ or give --on-error skip"):
        run(config)

    assert open_store(config.out).missing() == [range(BATCH, 40)]


@pytest.mark.parametrize("kind", ["truncated JPEG", "truncated PNG", "empty"])
def test_skipping_an_image_moves_no_other_row(folder, tmp_path, kind):
    whole = settings(folder, tmp_path / "whole.zarr", layers="5")
    config = settings(with_broken(tmp_path, kind), tmp_path / "x.zarr", layers="5", on_error="skip")
    run(whole)

    report = run(config)

    store, full = open_store(config.out), open_store(whole.out)
    others = np.setdiff1d(np.arange(40), [17])
    assert report.skipped == 1
    assert "1 row is skipped: its image cannot be read" in report.tables()[0].notes
    assert store.status()[17].startswith("skipped: ")
    assert set(store.status()[others]) == {"ok"}
    np.testing.assert_array_equal(store.read("embedding", others), full.read("embedding", others))
    assert len(store.to_numpy("embedding")) == 39
    assert not store.read("embedding", slice(17, 18)).any()


def test_skipping_goes_on_where_stopping_had_stopped(tmp_path):
    data = with_broken(tmp_path, "empty")
    once = settings(data, tmp_path / "once.zarr", layers="5", on_error="skip")
    run(once)
    config = settings(data, tmp_path / "x.zarr", layers="5")
    with pytest.raises(UnreadableSampleError):
        run(config)

    report = run(settings(data, config.out, layers="5", on_error="skip"))

    assert report.kept == BATCH
    assert lasting(config.out) == lasting(once.out)


def test_an_image_that_was_skipped_does_not_hinder_the_next_version(tmp_path, forwards):
    config = settings(with_broken(tmp_path, "empty"), tmp_path / "x.zarr", layers="5", on_error="skip")
    run(config)
    (config.out / "provenance.jsonl").unlink()

    report = run(settings(config.data, config.out, layers="4-5", on_error="skip", extend=True))

    assert report.added == ("layers/cls/04",)


def test_cls_of_a_cnn_is_answered_with_mean(folder, tmp_path):
    model = {"backbone": "timm:test_resnet", "tokens": "cls"}

    with pytest.raises(BackboneError, match="mean"):
        run(settings(folder, tmp_path / "x.zarr", **model))

    assert not (tmp_path / "x.zarr").exists()


def test_logits_of_a_model_without_a_classifier_are_refused(folder, tmp_path):
    config = settings(folder, tmp_path / "x.zarr", backbone="demo", logits=True)

    with pytest.raises(BackboneError, match="demo has no classifier, so there are no logits"):
        run(config)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("6-3", "the span 6-3 runs backwards, write 3-6"),
        ("", "'' is neither an index nor a span"),
        ("1,,2", "'' is neither an index nor a span"),
        ("1-2-3", "'1-2-3' is neither an index nor a span"),
        ("-1", "'-1' is neither an index nor a span"),
        ("first", "'first' is neither an index nor a span"),
    ],
)
def test_layers_that_mean_nothing_are_named(text, why):
    with pytest.raises(BackboneError, match=f"--layers must be all, last, none, or .*; got '{text}': {why}"):
        parse_layers(text, 12)


def test_layers_that_are_not_there_are_named():
    with pytest.raises(BackboneError, match="the model has layers 0 to 11"):
        parse_layers("3,10-12", 12)


def test_indices_and_spans_are_one_ascending_list():
    assert parse_indices("6-8, 0,7,3-3") == [0, 3, 6, 7, 8]


def test_a_second_writer_is_told_who_writes_and_since_when(folder, tmp_path):
    config = settings(folder, tmp_path / "x.zarr", layers="5")
    run(config)
    first = open_store(config.out, writable=True)

    with pytest.raises(StoreBusyError, match=rf"is being written by process {os.getpid()} on \S+, for \d+ s"):
        run(settings(folder, config.out, layers="4-5", extend=True))

    first.close()
    run(settings(folder, config.out, layers="4-5", extend=True))


def put(value: float, array: str, *, row: int):
    """Return what puts `value` into one array of one row."""

    def change(outputs: dict[str, Tensor], number: int) -> None:
        if number == row // BATCH and array in outputs:
            outputs[array][row % BATCH, 3] = value

    return change


def with_broken(tmp_path: Path, kind: str) -> Path:
    """Return the usual folder with `cat/017.png` truncated or empty."""
    root = pictures(tmp_path / "broken")
    victim = root / "cat/017.png"
    victim.write_bytes(b"" if kind == "empty" else encoded(17, kind.split()[1], (64, 64))[:-600])
    return root
