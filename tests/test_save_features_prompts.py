"""The text side of CLIP in the store: once, before the rows, in the store's dtype; a part of the contents like any other."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import save_features
from featurecache.backbones import BackboneOptions, load_backbone
from featurecache.errors import (
    BackboneError,
    ConfigError,
    DatasetError,
    FeatureValueError,
    StoreContentsError,
    StoreMismatchError,
)
from featurecache.features import OF_THE_MODEL
from featurecache.sources.cached import CachedSource
from featurecache.stores import _constants, open_store
from pipelines.inspect import InfoConfig, info
from pipelines.maintain import ConvertConfig, convert
from save_features import SaveFeaturesConfig, run
from tests.extraction_samples import lasting, pictures
from tests.featurecache.backbones.clip_samples import TEXT, VIT, written

SAID = ("text/embedding", "text/eot", *OF_THE_MODEL)
CLASSES, TEMPLATE, OTHER = ("barn_door", "cat", "owl"), "a photo of a {}.", "{} in a {} mood"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "animals", barn_door=6, cat=6, owl=8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(VIT, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def tower(clip: str) -> Any:
    return load_backbone(clip, BackboneOptions(weights="random:0")).text


@pytest.fixture(scope="module")
def whole(folder: Path, clip: str) -> Path:
    """A store with text, made at once."""
    out = folder.parent / "whole.zarr"
    run(settings(folder, clip, out))
    return out


def settings(folder: Path, backbone: str, out: Path, **changes: Any) -> SaveFeaturesConfig:
    given = {"weights": "random:0", "layers": "last", "dtype": "float32", "batch_size": 8, "quiet": True, **changes}
    return SaveFeaturesConfig(data=str(folder), backbone=backbone, out=out, **given)


def change_text(patch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let every backbone that is loaded from now on have a text side with these attributes."""
    load = save_features.load_backbone

    def loaded(name: str, options: BackboneOptions) -> Any:
        backbone = load(name, options)
        return dataclasses.replace(backbone, text=dataclasses.replace(backbone.text, **changes))

    patch.setattr(save_features, "load_backbone", loaded)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_store_holds_what_the_text_side_says_of_the_class_names_in_the_default_template(
    folder, clip, tower, tmp_path, suffix
):
    run(settings(folder, clip, tmp_path / f"x{suffix}"))

    store, expected = open_store(tmp_path / f"x{suffix}"), tower.features(CLASSES, [TEMPLATE])
    assert store.header.prompts == (TEMPLATE,)
    assert {spec.name: spec.tail for spec in store.header.constants} == {
        "text/embedding": (3, 1, VIT["embed_dim"]), "text/eot": (TEXT["layers"], 3, 1, TEXT["width"]),
        "text/image_projection": (1, VIT["vision_cfg"]["width"], VIT["embed_dim"]), "text/logit_scale": (1, 1, 1),
        "text/projection": (1, TEXT["width"], VIT["embed_dim"]),
    }  # fmt: skip
    expected |= tower.space()
    for name, values in expected.items():
        np.testing.assert_array_equal(store.constant(name), values.numpy())
        np.testing.assert_array_equal(store.to_numpy(name), values.numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_text_is_kept_in_the_dtype_of_the_store(folder, clip, tower, tmp_path, dtype):
    run(settings(folder, clip, tmp_path / "x.zarr", dtype=dtype))

    store, logical = open_store(tmp_path / "x.zarr"), getattr(torch, dtype)
    for name, values in tower.space().items():
        assert np.array_equal(store.constant(name), values.numpy()), "what is of the model is float32 in any store"
    for name, values in tower.features(CLASSES, [TEMPLATE]).items():
        assert store.constant(name).dtype == store.header.constant(name).storage_dtype
        assert np.array_equal(store.to_numpy(name).astype(np.float32), values.to(logical).float().numpy())


def test_a_source_has_the_arrays_of_the_classes_and_reads_them_when_they_are_asked_for(whole, tower, monkeypatch):
    store, read = open_store(whole), []
    constant = type(store).constant
    monkeypatch.setattr(type(store), "constant", lambda self, name: read.append(name) or constant(self, name))

    source = CachedSource(store, ["projected"], np.arange(8))

    assert sorted(source.constants) == list(SAID) and read == []
    for _ in range(2):
        assert torch.equal(source.constants["text/embedding"], tower.features(CLASSES, [TEMPLATE])["text/embedding"])
    assert source.constants["text/embedding"].dtype == torch.float32
    assert read == ["text/embedding"]
    with pytest.raises(KeyError):
        source.constants["text/x"]


def test_a_file_of_templates_gives_them_in_its_order(folder, clip, tower, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{TEMPLATE}\n{OTHER}\n")

    run(settings(folder, clip, tmp_path / "x.zarr", prompts=str(tmp_path / "prompts.txt")))

    store = open_store(tmp_path / "x.zarr")
    assert store.header.prompts == (TEMPLATE, OTHER)
    assert np.array_equal(store.constant("text/eot"), tower.features(CLASSES, [TEMPLATE, OTHER])["text/eot"].numpy())


def test_the_same_command_again_does_nothing_and_asks_the_text_side_for_a_shape_alone(
    folder, clip, whole, tower, monkeypatch
):
    before, asked = lasting(whole), []
    change_text(monkeypatch, tokenize=lambda texts: asked.extend(texts) or tower.tokenize(texts))

    report = run(settings(folder, clip, whole))

    assert report.was_finished
    assert lasting(whole) == before
    assert asked == ["a photo of a barn door."]


def test_a_store_with_text_holds_all_of_one_without(folder, clip, whole):
    report = run(settings(folder, clip, whole, prompts="none"))

    assert report.was_finished
    assert report.beyond == SAID


def test_auto_takes_the_templates_that_a_store_has(folder, clip, tmp_path):
    config = settings(folder, clip, tmp_path / "x.zarr", prompts=OTHER)
    run(config)

    assert run(dataclasses.replace(config, prompts="auto")).was_finished
    assert open_store(config.out).header.prompts == (OTHER,)


def test_text_that_is_not_there_needs_the_word(folder, clip, tmp_path):
    config = settings(folder, clip, tmp_path / "x.zarr", prompts="none")
    run(config)

    with pytest.raises(StoreContentsError, match=f"but without {', '.join(SAID)}. Give --extend to add just those"):
        run(settings(folder, clip, config.out))
    assert open_store(config.out).header.constants == ()


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_text_is_added_without_a_row_being_touched_and_the_store_is_that_of_one_run(
    folder, clip, whole, tmp_path, suffix
):
    out = tmp_path / f"x{suffix}"
    run(settings(folder, clip, out, prompts="none"))
    before = {path: path.stat() for path in out.rglob("c/**/*") if path.is_file()}

    report = run(settings(folder, clip, out, extend=True))

    assert report.added == SAID
    assert report.kept == report.rows == 20
    rows = {path: stat for path, stat in before.items() if "status" not in path.parts}
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in rows} == {
        path: (stat.st_ino, stat.st_mtime_ns) for path, stat in rows.items()
    }
    if suffix == ".h5":
        convert(ConvertConfig(store=out, out=tmp_path / "back.zarr"))
    assert lasting(out if suffix == ".zarr" else tmp_path / "back.zarr") == lasting(whole)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_store_of_before_the_projections_is_read_and_gets_them_without_a_text_computed_again(
    folder, clip, whole, tower, tmp_path, monkeypatch, suffix
):
    out, asked = tmp_path / f"x{suffix}", []
    with monkeypatch.context() as patch:
        patch.setattr(type(tower), "space", lambda self: {})
        run(settings(folder, clip, out))
    assert [spec.name for spec in open_store(out).header.constants] == list(SAID[:2])
    with pytest.raises(
        StoreContentsError, match=r"no array 'text/projection' .*; it holds text/e.* with --extend adds it"
    ):
        open_store(out).constant("text/projection")
    with pytest.raises(
        StoreContentsError, match="but without text/image_projection, text/logit_scale, text/projection"
    ):
        run(settings(folder, clip, out))
    change_text(monkeypatch, tokenize=lambda texts: asked.append(texts) or tower.tokenize(texts))

    run(settings(folder, clip, out, extend=True))

    assert [len(texts) for texts in asked] == [1], "one class shows the shapes"
    if suffix == ".h5":
        convert(ConvertConfig(store=out, out=tmp_path / "back.zarr"))
    assert lasting(out if suffix == ".zarr" else tmp_path / "back.zarr") == lasting(whole)


def test_text_and_layers_are_added_together(folder, clip, tmp_path):
    config = settings(folder, clip, tmp_path / "whole.zarr", layers="all")
    run(config)
    run(settings(folder, clip, tmp_path / "x.zarr", prompts="none"))

    run(settings(folder, clip, tmp_path / "x.zarr", layers="all", extend=True))

    assert lasting(tmp_path / "x.zarr") == lasting(config.out)


def test_many_classes_are_computed_and_kept_a_few_at_a_time(folder, clip, tower, tmp_path, monkeypatch):
    monkeypatch.setattr(_constants, "TARGET_BYTES", 300)
    asked: list[list[str]] = []
    change_text(monkeypatch, tokenize=lambda texts: asked.append(texts) or tower.tokenize(texts))

    run(settings(folder, clip, tmp_path / "x.zarr"))

    assert [len(texts) for texts in asked] == [1, 2, 1]  # the first one asks for the shapes
    store = open_store(tmp_path / "x.zarr")
    assert len([path for path in (tmp_path / "x.zarr/text/eot/c").rglob("*") if path.is_file()]) == 2
    np.testing.assert_allclose(
        store.constant("text/eot"), tower.features(CLASSES, [TEMPLATE])["text/eot"].numpy(), rtol=1e-4, atol=1e-5
    )


def test_other_templates_than_those_of_the_store_are_refused(folder, clip, whole):
    with pytest.raises(
        StoreMismatchError, match=r"prompts: the store has \('a photo of a \{\}\.',\), this run \('\{\} in"
    ):
        run(settings(folder, clip, whole, prompts=OTHER, extend=True))
    with pytest.raises(StoreMismatchError, match="this run 80 of them, from 'a bad photo of a {}.' on"):
        run(settings(folder, clip, whole, prompts="openai-imagenet"))


def test_prompts_of_a_backbone_without_text_are_refused_and_auto_asks_for_none(folder, tmp_path):
    with pytest.raises(BackboneError, match="demo has no text side, .*Leave --prompts out, or name a model with both"):
        run(settings(folder, "demo", tmp_path / "x.zarr", weights=None, prompts="simple-imagenet"))
    assert not (tmp_path / "x.zarr").exists()

    run(settings(folder, "demo", tmp_path / "x.zarr", weights=None))
    assert open_store(tmp_path / "x.zarr").header.constants == ()


@pytest.mark.parametrize("labels", ["none", "numbers"])
def test_prompts_for_data_without_class_names_are_refused_and_auto_asks_for_none(folder, clip, tmp_path, labels):
    with_numbers, paths = labels == "numbers", sorted(folder.rglob("*.png"))
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"] if with_numbers else ["path"])
        rows.writerows([[str(path), n / 7] if with_numbers else [str(path)] for n, path in enumerate(paths)])
    given = {"task": "regression"} if with_numbers else {}
    config = settings(tmp_path / "rows.csv", clip, tmp_path / "x.zarr", layers="none", **given)

    with pytest.raises(DatasetError, match="has no class names to put into prompts. Leave --prompts out"):
        run(dataclasses.replace(config, prompts=TEMPLATE))
    run(config)

    assert open_store(config.out).header.constants == ()


def test_a_tokenizer_that_cannot_be_had_is_refused_before_the_run_with_the_way_out(folder, tmp_path):
    config = {**VIT, "text_cfg": {**TEXT, "hf_tokenizer_name": str(tmp_path / "nothing")}}
    clip = written(config, tmp_path)

    with pytest.raises(
        BackboneError, match=r"tokenizer of this text tower cannot be had .*Give --prompts none to keep"
    ):
        run(settings(folder, clip, tmp_path / "x.zarr"))
    assert not (tmp_path / "x.zarr").exists()
    assert not run(settings(folder, clip, tmp_path / "x.zarr", prompts="none")).was_finished


def test_words_that_name_no_templates_are_refused_before_the_run(folder, clip, tmp_path):
    with pytest.raises(ConfigError, match="openai-imagenet, simple-imagenet, a file"):
        run(settings(folder, clip, tmp_path / "x.zarr", prompts="openai-imagnet"))


@pytest.mark.parametrize(
    ("factor", "dtype", "message"),
    [
        (1e6, "float16", "text/e.* of 'barn_door' reaches .* which float16 cannot hold. Give --dtype bfloat16"),
        (torch.nan, "float32", "NaN or infinity in text/e.* for 'barn_door'. Look at that class name"),
    ],
)
def test_values_that_the_store_cannot_hold_are_refused_with_the_class(
    folder, clip, tower, tmp_path, monkeypatch, factor, dtype, message
):
    features = type(tower).features
    monkeypatch.setattr(
        type(tower), "features", lambda *given: {name: v * factor for name, v in features(*given).items()}
    )

    with pytest.raises(FeatureValueError, match=message):
        run(settings(folder, clip, tmp_path / "x.zarr", dtype=dtype))

    assert list(tmp_path.iterdir()) == []


def test_info_shows_the_prompts_and_the_arrays_of_the_classes(whole):
    facts = info(InfoConfig(store=whole))

    assert {"name": "text/embedding", "shape": "3x1x24", "dtype": "float32", "norm": "", "mib": "0.0"} in facts.value[
        "arrays"
    ]
    assert facts.value["prompts"] == [TEMPLATE]
    assert ("prompts", repr(TEMPLATE)) in facts.tables()[0].rows


def test_a_store_from_before_there_were_prompts_opens_and_takes_text(folder, clip, whole, tmp_path):
    old = tmp_path / "old.zarr"
    run(settings(folder, clip, old, prompts="none"))

    assert b"prompts" not in (old / "zarr.json").read_bytes()
    assert b"constants" not in (old / "zarr.json").read_bytes()
    run(settings(folder, clip, old, extend=True))
    assert lasting(old) == lasting(whole)
