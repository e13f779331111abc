"""The words of --layers and --tokens name arrays of the store, or are refused with what it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from featurecache.errors import ConfigError, StoreContentsError
from featurecache.features import ArraySpec, Header, Layer, layer_array
from pipelines._arrays import select_arrays

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


@pytest.mark.parametrize(("consumes", "layers"), [("all", None), ("last", "last"), ("last", "0"), ("last", "mean")])
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
    names, _ = select_arrays(header(tokens=held), "last", None, "auto")

    assert names == (f"layers/{chosen}/05",)


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
