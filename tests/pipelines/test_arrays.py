"""The words of --layers and --tokens name arrays of the store, or are refused with what it holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from featurecache.backbones import BackboneOptions, Request, load_backbone
from featurecache.errors import ConfigError, StoreContentsError
from featurecache.features import ArraySpec, Header, Layer, layer_array
from featurecache.stores import open_store
from heads._checkpoint import load_head
from pipelines._arrays import compare_live, compare_stored, select_arrays
from pipelines.estimator import HeadClassifier
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from pipelines.train_online import TrainOnlineConfig
from pipelines.train_online import run as train_online
from tests.featurecache.backbones.clip_samples import RESNET, TIMM, VIT, written
from tests.featurecache.backbones.second_route import embedding_of, images_for
from tests.pipelines.pictures import CLASSES, pictures, store_of
from tests.pipelines.stores import made_store

LAYERS = (0, 1, 2, 5)
TOKENS = ("cls", "mean", "patch-grid:2")


def header(layers: tuple[int, ...] = LAYERS, tokens: tuple[str, ...] = TOKENS) -> Header:
    names = [layer_array(token.partition(":")[0], index) for token in tokens for index in layers]
    return Header(
        backbone={}, dataset={}, rows=1, views=1, task="classification", class_names=("a", "b"),
        layers=tuple(Layer(index, 8, "norm") for index in layers), tokens=tokens,
        arrays=tuple(ArraySpec(name, (8,), "float16") for name in ("embedding", *names)),
    )  # fmt: skip


@pytest.mark.parametrize(("consumes", "layers", "tokens", "expected"), [
    ("last", None, "auto", ["layers/cls/05"]),
    ("all", None, "auto", ["layers/cls/00", "layers/cls/01", "layers/cls/02", "layers/cls/05"]),
    ("all", "last", "auto", ["layers/cls/05"]),
    ("last", "1", "auto", ["layers/cls/01"]),
    ("last", "5,0-1", "mean", ["layers/mean/00", "layers/mean/01", "layers/mean/05"]),
    ("last", "concat", "cls", ["layers/cls/00", "layers/cls/01", "layers/cls/02", "layers/cls/05"]),
    ("last", "all", "cls", ["layers/cls/00", "layers/cls/01", "layers/cls/02", "layers/cls/05"]),
    ("last", "1,2", "cls+mean", ["layers/cls/01", "layers/mean/01", "layers/cls/02", "layers/mean/02"]),
    ("last", None, "mean+mean", ["layers/mean/05"]),
    ("last", "2", "patch-grid:2", ["layers/patch-grid/02"]),
    ("all", "embedding", "auto", ["embedding"]),
])  # fmt: skip
def test_words_name_arrays_from_shallow_to_deep(consumes, layers, tokens, expected):
    names, combine = select_arrays(header(), consumes, layers, tokens)

    assert list(names) == expected
    assert combine == "concat"


def test_the_word_mean_is_all_layers_averaged():
    names, combine = select_arrays(header(), "last", "mean", "auto")

    assert len(names) == len(LAYERS)
    assert combine == "mean"


def test_without_layers_a_head_of_one_vector_reads_the_embedding():
    assert select_arrays(header((), ()), "last", None, "auto") == (("embedding",), "concat")


@pytest.mark.parametrize(("consumes", "layers"), [("last", "last"), ("all", "last"), ("all", "embedding")])
def test_without_layers_the_word_last_is_the_embedding_for_every_head(consumes, layers):
    assert select_arrays(header((), ()), consumes, layers, "auto")[0] == ("embedding",)


@pytest.mark.parametrize(("consumes", "layers"), [("all", None), ("last", "0"), ("last", "mean"), ("tokens", "last")])
def test_without_layers_asking_for_layers_is_refused_with_both_ways_out(consumes, layers):
    with pytest.raises(StoreContentsError, match="no layers. Give --layers embedding, or .* --extend"):
        select_arrays(header((), ()), consumes, layers, "auto")


@pytest.mark.parametrize("layers", ["lasst", "0..3", "-1", "1,,2", "1.5", "a-b"])
def test_words_that_mean_nothing_are_answered_with_those_that_do(layers):
    with pytest.raises(
        ConfigError, match=f"layers must be last, embedding, mean, concat, or indices .* got {layers!r}"
    ):
        select_arrays(header(), "last", layers, "auto")


@pytest.mark.parametrize("layers", ["3", "0-5", "6", "5,99"])
def test_layers_that_are_not_there_are_answered_with_those_that_are(layers):
    with pytest.raises(StoreContentsError, match=f"--layers {layers} asks for layers .* it holds 0, 1, 2, 5"):
        select_arrays(header(), "last", layers, "auto")


@pytest.mark.parametrize(("tokens", "named"), [("register", "'register'"), ("cls+x+y", "'x', 'y'"), ("cls+", "''")])
def test_tokens_that_are_not_there_are_answered_with_those_that_are(tokens, named):
    with pytest.raises(StoreContentsError, match=f"holds no tokens {named}; it holds cls, mean, patch-grid:2"):
        select_arrays(header(), "last", None, tokens)


def test_tokens_kept_for_some_layers_only_are_refused_by_the_name_of_the_array():
    held = header(tokens=("cls", "mean"))
    partly = replace(held, arrays=tuple(spec for spec in held.arrays if spec.name != "layers/mean/01"))

    with pytest.raises(StoreContentsError, match="does not hold layers/mean/01. Name the layers that it holds"):
        select_arrays(partly, "all", None, "mean")
    assert select_arrays(partly, "all", "0,2", "mean")[0] == ("layers/mean/00", "layers/mean/02")


@pytest.mark.parametrize(("held", "chosen"), [
    (("all", "cls", "mean"), "cls"), (("all", "mean"), "mean"), (("patch-grid:2", "register"), "patch-grid"),
])  # fmt: skip
def test_auto_prefers_the_class_token_then_the_mean(held, chosen):
    names, _ = select_arrays(header(tokens=held), "last", "5", "auto")

    assert names == (f"layers/{chosen}/05",)


@pytest.mark.parametrize("layers", [None, "last"])
@pytest.mark.parametrize(("tail", "held"), [
    ((9,), TOKENS), ((8,), ("patch-grid:2",)), ((8,), ("register", "all")),
], ids=["another width", "cells alone", "many tokens alone"])  # fmt: skip
def test_last_is_the_embedding_where_no_token_of_the_last_layer_can_be_it(tail, held, layers):
    plain = header(tokens=held)
    wide = replace(
        plain, arrays=tuple(replace(spec, tail=tail) if spec.name == "embedding" else spec for spec in plain.arrays)
    )

    for consumes in ("last", "all") if layers else ("last",):
        assert select_arrays(wide, consumes, layers, "auto")[0] == ("embedding",)


def test_last_of_a_named_kind_of_token_is_the_layer():
    names, _ = select_arrays(header(), "last", "last", "mean", lambda name: pytest.fail(f"{name} was compared"))

    assert names == ("layers/mean/05",)


def test_last_asks_whether_the_token_is_the_embedding_where_the_header_leaves_it_open():
    for answer, expected in ((True, "layers/cls/05"), (False, "embedding")):
        assert select_arrays(header(), "last", None, "auto", lambda name, answer=answer: answer)[0] == (expected,)


def test_last_is_a_layer_where_a_store_holds_no_embedding():
    plain = header()
    bare = replace(plain, arrays=tuple(spec for spec in plain.arrays if spec.name != "embedding"))

    assert select_arrays(bare, "last", None, "auto", lambda name: False)[0] == ("layers/cls/05",)


POOLED = [
    *timm.list_models("test_*"), "vit_tiny_patch16_224", "vit_tiny_patch16_224?global_pool=avg",
    "vit_tiny_patch16_224?global_pool=map", "mobilenetv2_035", "resnet10t", "deit_tiny_distilled_patch16_224",
]  # fmt: skip
REPEATED = {
    "test_vit": "cls", "vit_tiny_patch16_224": "cls", "resnet10t": "mean", "test_resnet": "mean", "test_byobnet": "mean",
    "test_coatnet": "mean", "test_maxvit": "mean",
}  # fmt: skip
"""Models whose embedding is a token of their last layer, by how they pool."""


@pytest.mark.parametrize("model", POOLED)
def test_last_is_the_vector_that_a_linear_probe_reads_however_a_model_pools(model):
    name, _, pool = model.partition("?global_pool=")
    options = BackboneOptions(weights="random:0", architecture={"global_pool": pool} if pool else {})
    backbone = load_backbone(f"timm:{name}", options)
    images, last = images_for(backbone), backbone.layers[-1]
    kind = backbone.tokens[0]
    found = backbone.forward(images, Request((last.index,), (kind,)))
    held = replace(
        header((), ()), layers=(last,), tokens=(kind,),
        arrays=tuple(ArraySpec(key, tuple(values.shape[1:]), "float32") for key, values in found.items()),
    )  # fmt: skip

    (array,), _ = select_arrays(held, "last", None, "auto", compare_live(backbone))

    expected = embedding_of(backbone.module, images).flatten(1)
    torch.testing.assert_close(found[array], expected, rtol=1e-3, atol=1e-4)
    assert array == (layer_array(REPEATED[model], last.index) if model in REPEATED else "embedding")


@pytest.mark.parametrize(("config", "repeats"), [(VIT, True), (RESNET, False), (TIMM, None)])
def test_last_of_a_tower_of_clip_is_the_vector_before_the_projection(config, repeats, tmp_path):
    backbone = load_backbone(written(config, tmp_path), BackboneOptions(weights="random:0"))
    images, last, kind = images_for(backbone), backbone.layers[-1], backbone.tokens[0]
    found = backbone.forward(images, Request((last.index,), (kind,)))
    name = layer_array(kind, last.index)

    same = found[name].shape == found["embedding"].shape and compare_live(backbone)(name)

    assert repeats is None or same == repeats
    assert same == (
        found[name].shape == found["embedding"].shape
        and torch.allclose(found[name], found["embedding"], rtol=1e-3, atol=1e-4)
    )


@pytest.mark.parametrize(("backbone", "settings", "expected"), [
    ("demo", {}, "layers/cls/05"),
    ("demo", {"layers": "0-2"}, "embedding"),
    ("demo", {"norm": "none"}, "embedding"),
    ("demo", {"tokens": "mean"}, "embedding"),
    ("demo", {"layers": "none"}, "embedding"),
    ("demo", {"dtype": "bfloat16"}, "layers/cls/05"),
    ("timm:test_vit3", {"weights": "random:0"}, "embedding"),
    ("timm:test_efficientnet", {"weights": "random:0"}, "embedding"),
    ("timm:test_resnet", {"weights": "random:0", "layers": "last"}, "layers/mean/04"),
])  # fmt: skip
def test_stored_rows_tell_what_last_is_and_verbs_read_it(backbone, settings, expected, tmp_path):
    photos = pictures(tmp_path / "photos", dict.fromkeys(CLASSES, 6))
    path = store_of(photos, tmp_path / "x.zarr", backbone=backbone, **settings)
    store = open_store(path)

    (array,), _ = select_arrays(store.header, "last", None, "auto", compare_stored(store))
    for head, layers in (("ridge", None), ("linear", "last")):
        train(TrainHeadConfig(store=path, head=head, layers=layers, out=tmp_path / head, epochs=1, quiet=True))

    assert array == expected
    rows = np.arange(4)
    stored = store.header.array(array)
    assert stored.tail == store.header.array("embedding").tail
    assert np.array_equal(store.read(array, rows), store.read("embedding", rows))
    assert [list(load_head(tmp_path / head)[1].shapes) for head in ("ridge", "linear")] == [[expected]] * 2
    assert HeadClassifier("ridge").fit(path).names_ == (expected,)


@pytest.mark.parametrize("backbone", ["timm:test_efficientnet", "timm:test_vit3", "timm:test_vit", "timm:test_resnet"])
def test_last_is_the_same_vector_offline_and_online(backbone, tmp_path):
    photos = pictures(tmp_path / "photos", dict.fromkeys(CLASSES, 6))
    path = store_of(photos, tmp_path / "x.zarr", backbone=backbone, weights="random:0", dtype="float32")
    shared = {"head": "ridge", "quiet": True}

    offline = train(TrainHeadConfig(store=path, out=tmp_path / "offline", **shared)).record
    online = train_online(
        TrainOnlineConfig(
            data=str(photos), backbone=backbone, weights="random:0", peft="none", out=tmp_path / "online", **shared
        )
    ).record

    assert offline["arrays"] == online["arrays"]
    stored = open_store(path)
    assert np.array_equal(stored.read(offline["arrays"][0], np.arange(6)), stored.read("embedding", np.arange(6)))
    assert offline["metrics"] == online["metrics"]


def test_arrays_of_one_width_with_other_vectors_are_told_apart(tmp_path):
    store = open_store(made_store(tmp_path / "x.zarr"))

    assert not compare_stored(store)("layers/cls/01")
    assert select_arrays(store.header, "last", None, "auto", compare_stored(store))[0] == ("embedding",)


def with_arrays(*more: ArraySpec) -> Header:
    plain = header()
    return replace(plain, arrays=(*plain.arrays, *more), tokens=(*plain.tokens, "all"))


def test_a_head_of_many_tokens_reads_the_last_layers():
    held = with_arrays(*(ArraySpec(layer_array("all", index), (5, 8), "float16") for index in LAYERS))

    assert select_arrays(held, "tokens", None, "auto")[0] == ("layers/all/05",)
    assert select_arrays(held, "tokens", "1", "auto")[0] == ("layers/all/01",)
    with pytest.raises(
        StoreContentsError, match="reads many tokens a layer, and the store holds cls, mean, patch-grid:2 only"
    ):
        select_arrays(header(), "tokens", None, "auto")


def test_a_head_of_the_joint_space_reads_that_alone():
    held = with_arrays(ArraySpec("projected", (4,), "float16"))

    assert select_arrays(held, "projected", None, "auto")[0] == ("projected",)
    with pytest.raises(ConfigError, match="so --layers 3 does not apply"):
        select_arrays(held, "projected", "3", "auto")
    with pytest.raises(StoreContentsError, match="holds no array projected"):
        select_arrays(header(), "projected", None, "auto")
