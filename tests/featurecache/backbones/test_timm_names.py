"""How models of timm are named: bare, with a tag or the beginning of one, with a prefix, and wrongly."""

from __future__ import annotations

import re

import pytest

from featurecache.backbones import BackboneOptions, load_backbone
from featurecache.backbones._timm_names import resolve
from featurecache.errors import BackboneError, ConfigError, UnknownNameError

ON_META = BackboneOptions(device="meta")

PAPERS_MODELS = {
    "resnet50.a1_in1k": (2048, 5),
    "mixer_b16_224.goog_in21k_ft_in1k": (768, 12),
    "vit_small_patch16_224.augreg_in1k": (384, 12),
    "vit_small_patch14_dinov2.lvd142m": (384, 12),
    "vit_base_patch14_dinov2.lvd142m": (768, 12),
    "vit_large_patch14_dinov2.lvd142m": (1024, 24),
    "vit_giant_patch14_dinov2.lvd142m": (1536, 40),
    "vit_large_patch14_clip_224.laion2b": (1024, 24),
    "vit_huge_patch14_clip_224.laion2b": (1280, 32),
    "vit_giant_patch14_clip_224.laion2b": (1408, 40),
    "resnetv2_50x1_bit.goog_in21k": (2048, 5),
    "resnetv2_50x3_bit.goog_in21k": (6144, 5),
    "resnetv2_101x1_bit.goog_in21k": (2048, 5),
    "resnetv2_101x3_bit.goog_in21k": (6144, 5),
    "resnetv2_152x2_bit.goog_in21k": (4096, 5),
    "resnetv2_152x4_bit.goog_in21k": (8192, 5),
}
"""Models of the transfer papers -> width of their embedding and number of their layers, as published."""


@pytest.mark.parametrize("name", PAPERS_MODELS)
def test_every_model_of_the_papers_resolves_and_can_be_described_without_weights(name):
    backbone = load_backbone(name, ON_META)

    assert backbone.name.startswith(f"timm:{name}")
    assert (backbone.dim, len(backbone.layers)) == PAPERS_MODELS[name]


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "timm:vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
     "timm:vit_tiny_patch16_224.augreg_in21k_ft"],
)  # fmt: skip
def test_bare_prefixed_and_tagged_names_lead_to_the_same_resolved_name(name):
    assert load_backbone(name, ON_META).name == "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_an_exact_tag_wins_over_longer_tags_that_begin_so():
    assert resolve("vit_tiny_patch16_224.augreg_in21k").full == "vit_tiny_patch16_224.augreg_in21k"


def test_the_name_of_weights_that_are_given_is_the_architecture_without_a_tag():
    options = BackboneOptions(weights="random:0", device="meta")

    assert load_backbone("vit_tiny_patch16_224.augreg_in21k", options).name == "timm:vit_tiny_patch16_224"


def test_a_tag_chooses_the_preprocessing_even_with_other_weights():
    options = BackboneOptions(weights="random:0", device="meta")

    means = {
        tag: load_backbone(f"vit_base_patch16_224.{tag}", options).identity["transform"]["mean"]
        for tag in ("augreg_in1k", "mae")
    }

    assert means == {"augreg_in1k": [0.5, 0.5, 0.5], "mae": [0.485, 0.456, 0.406]}


def test_a_name_that_timm_has_replaced_still_works():
    assert resolve("vit_tiny_patch16_224_in21k").full == "vit_tiny_patch16_224.augreg_in21k"


def test_a_folder_on_disk_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert resolve("local-dir:mine").full == f"local-dir:{tmp_path / 'mine'}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_225", "no model called 'vit_tiny_patch16_225'. Did you mean 'vit_tiny_patch16_224'"),
        ("timm:resnet81", "no model called 'resnet81'. Did you mean 'resnet[0-9]+'.*list backbones --filter"),
        ("vit_tiny_patch16_224.augre", "several weights whose tag begins with 'augre'. Its tags: augreg_in21k_ft_in1k, augreg_in21k"),
        ("resnet18.a1_in2k", "no weights with the tag 'a1_in2k'. Did you mean 'a1_in1k'\\? Its tags: a1_in1k"),
        ("tim:resnet18", "no backbone source called 'tim'. Did you mean 'timm'\\? Known: demo, .*timm"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(UnknownNameError, match=message):
        load_backbone(name, ON_META)


def test_a_hub_name_without_a_network_names_the_way_out(monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("the network is down")

    monkeypatch.setattr("featurecache.backbones._downloading.why_unreachable", lambda url: "")
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", unreachable)

    with pytest.raises(BackboneError, match=r"hf-hub:someone/model cannot be had.*network is down.*--weights FILE"):
        load_backbone("hf-hub:someone/model", ON_META)


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({"architecture": {"pretrained": True, "in_chans": 1, "depth": None}},
         ["pretrained is not an option of the architecture: use --weights", "in_chans is not .*use images of three channels",
          "the architecture option depth has no value"]),
        ({"architecture": {"pad_type": "sane"}}, ["pad_type must be same, valid or symmetric, got 'sane'"]),
        ({"architecture": {"img_size": 224}, "image_size": 96}, ["image_size is 96, but the architecture's img_size 224"]),
        ({"transform": {"meen": 0, "std": 0, "size": 0.5, "crop": "nan"}},
         ["no setting 'meen'. Did you mean 'mean'", "std cannot be 0", "size cannot be 0.5", "crop cannot be 'nan'"]),
        ({"transform": {"size": 128}, "image_size": 96}, ["image_size is 96, but the transform's size 128: give one"]),
        ({"weights": "random:one"}, ["random weights need a seed, such as random:0; got 'random:one'"]),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_all_named_at_once(options, problems):
    with pytest.raises(ConfigError) as caught:
        load_backbone("resnet18", BackboneOptions(**options, **({} if "weights" in options else {"device": "meta"})))

    assert len(caught.value.problems) == len(problems)
    for said, expected in zip(caught.value.problems, problems, strict=True):
        assert re.search(expected, said), said


def test_an_argument_that_the_architecture_does_not_have_is_refused_by_name():
    with pytest.raises(BackboneError, match=r"resnet18.* cannot be built with the architecture options .*'window': 7"):
        load_backbone("resnet18", BackboneOptions(architecture={"window": 7}, device="meta"))


@pytest.mark.parametrize(("side", "nearest"), [(225, "224 and 240"), (8, "16")])
def test_a_size_that_patches_do_not_fill_is_answered_with_the_nearest_that_they_do(side, nearest):
    with pytest.raises(BackboneError, match=f"cannot take images of {side} pixels.* multiples of 16.*: {nearest}\\."):
        load_backbone("vit_tiny_patch16_224", BackboneOptions(image_size=side, device="meta"))


def test_the_models_own_size_is_no_other_identity():
    asked = BackboneOptions(image_size=224, device="meta")

    assert (
        load_backbone("vit_tiny_patch16_224", asked).identity == load_backbone("vit_tiny_patch16_224", ON_META).identity
    )


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_model_told_not_to_pool_is_refused(name):
    options = BackboneOptions(architecture={"global_pool": ""}, device="meta")

    with pytest.raises(BackboneError, match=r"must be one vector per image, but one image gave \(1, .*global_pool"):
        load_backbone(name, options)


def test_a_mistyped_source_is_answered_with_that_source():
    with pytest.raises(UnknownNameError, match=r"timm has no model called 'demmo'.* Did you mean 'demo'\?"):
        load_backbone("demmo")
