"""Names, configurations, options and preprocessing of open_clip's models."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from featurecache.backbones import BackboneOptions, load_backbone
from featurecache.errors import BackboneError, ConfigError, UnknownNameError
from tests.featurecache.backbones.clip_samples import RESNET, TEXT, TIMM, VIT, changed, written

RANDOM = BackboneOptions(weights="random:0")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return written(VIT, tmp_path_factory.mktemp("clip"))


def loaded(name: str, **options: Any):
    return load_backbone(name, dataclasses.replace(RANDOM, **options))


def test_names_of_open_clip_that_differ_by_activation_differ_in_identity():
    options = BackboneOptions(weights="random:0", device="meta")

    identities = [load_backbone(f"open_clip:{n}", options).identity for n in ("ViT-B-32", "ViT-B-32-quickgelu")]

    assert [identity["activation"] for identity in identities] == [["GELU"], ["QuickGELU"]]
    assert identities[0]["weights"] == identities[1]["weights"]


@pytest.mark.parametrize(("name", "said"), [
    ("ViT-B-32/openai", "trained with QuickGELU, and open_clip:ViT-B-32 computes GELU.*quick_gelu=true"),
    ("ViT-B-32-quickgelu/openai", ""),
    ("ViT-B-32/laion2b_s34b_b79k", ""),
])  # fmt: skip
def test_a_tag_trained_with_another_activation_is_warned_of(name, said, caplog):
    with caplog.at_level(logging.WARNING, logger="featurecache"):
        load_backbone(f"open_clip:{name}", BackboneOptions(weights="random:0", device="meta"))

    assert bool(caplog.messages) == bool(said)
    assert not said or all(part in caplog.text for part in said.split(".*"))


def test_what_a_file_says_of_the_architecture_is_identity_and_its_place_is_not(tmp_path):
    (tmp_path / "moved").mkdir()
    one, moved = loaded(written(VIT, tmp_path)), loaded(written(VIT, tmp_path / "moved"))
    other = loaded(written(changed(VIT, head_width=8), tmp_path, "tiny"))

    assert one.identity == moved.identity and one.name == "open_clip:tiny"
    assert one.identity["weights"] == other.identity["weights"] and one.identity != other.identity


def test_slashes_and_case_of_a_name_are_those_of_open_clip():
    options = BackboneOptions(weights="random:0", device="meta")

    found = [load_backbone(f"open_clip:{name}", options) for name in ("ViT-B/32", "ViT-B-32/openai", "ViT-B/32/openai")]

    assert {backbone.name for backbone in found} == {"open_clip:ViT-B-32"}
    assert [backbone.origin["name"] for backbone in found] == [
        "open_clip:ViT-B-32", "open_clip:ViT-B-32/openai", "open_clip:ViT-B-32/openai",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "message"), [
    ("ViT-B-23", r"no architecture called 'ViT-B-23'.*ViT-B-32.*list_models\(\)"),
    ("ViT-B-23/openai", "no architecture called 'ViT-B-23'"),
    ("ViT-B-32/opneai", "no weights with the tag 'opneai'.*openai.*Its tags: .*laion2b_s34b_b79k"),
])  # fmt: skip
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(UnknownNameError, match=message):
        load_backbone(f"open_clip:{name}", RANDOM)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "is no JSON"),
    ("[]", "embed_dim, vision_cfg, text_cfg missing or of the wrong kind"),
    (json.dumps({**VIT, "text_cfg": 3}), "is no configuration of open_clip's: text_cfg missing"),
    (json.dumps({**VIT, "depth": 3}), r"cannot be built from its configuration \(TypeError: .*'depth'"),
    (json.dumps(changed(VIT, timm_model_name="no_such_net")), "cannot be built from its configuration"),
    (json.dumps({"model_cfg": VIT, "preprocess_cfg": {"resize_mode": "longest"}}), "resizes by 'longest'; known here"),
])  # fmt: skip
def test_a_file_that_is_no_configuration_is_refused(text, message, tmp_path):
    path = tmp_path / "wrong.json"
    path.write_text(text)

    with pytest.raises(BackboneError, match=message):
        load_backbone(f"open_clip:{path}", RANDOM)


def test_a_configuration_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BackboneError, match="gone.json cannot be read: No such file"):
        load_backbone(f"open_clip:{tmp_path / 'gone.json'}", RANDOM)


def test_all_wrong_options_of_the_architecture_come_at_once(tiny):
    options = {"vision_cfg.image_size": 64, "decoder.layers": 2, "quick_gelu": None}

    with pytest.raises(ConfigError) as caught:
        loaded(tiny, architecture=options)

    for part in ("image_size is not an option of the architecture: use --image-size", "no option 'decoder.layers'",
                 "vision_cfg.NAME, text_cfg.NAME", "quick_gelu has no value"):  # fmt: skip
        assert part in str(caught.value)


def test_an_unknown_setting_of_a_tower_is_refused_with_the_reason(tiny):
    with pytest.raises(BackboneError, match="cannot be built from its configuration .*'layerz'"):
        loaded(tiny, architecture={"vision_cfg.layerz": 2})


def test_options_change_the_depth(tiny):
    assert len(loaded(tiny, architecture={"vision_cfg.layers": 2}).layers) == 2


@pytest.mark.parametrize("config", [VIT, RESNET, TIMM], ids=["vit", "resnet", "timm"])
def test_a_side_that_is_no_whole_number_of_patches_is_refused_with_the_nearest(config, tmp_path):
    step = {8: 8, 16: 16}.get(config["vision_cfg"].get("patch_size"), 16 if config is TIMM else 32)

    with pytest.raises(BackboneError, match=f"sides are multiples of {step} .*takes: {3 * step} and {4 * step}"):
        loaded(written(config, tmp_path), image_size=3 * step + 2)


def picture() -> Image.Image:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 255, (90, 140, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("settings", [
    {}, {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bilinear"},
])  # fmt: skip
def test_pictures_are_prepared_as_open_clip_prepares_them_bit_for_bit(settings, tmp_path):
    backbone = loaded(written({"model_cfg": VIT, "preprocess_cfg": settings}, tmp_path))
    own = image_transform_v2(PreprocessCfg(size=32, **settings), is_train=False)

    assert torch.equal(backbone.transform(picture()), own(picture()))
    assert backbone.identity["transform"]["mean"] == list(settings.get("mean", open_clip.OPENAI_DATASET_MEAN))


def test_a_tag_says_the_preprocessing_and_the_transform_overrides_it():
    options = BackboneOptions(weights="random:0", device="meta", transform={"std": 0.25})

    found = load_backbone("open_clip:ViT-B-32/datacomp_xl_s13b_b90k", options).identity["transform"]
    other = load_backbone("open_clip:MobileCLIP-S1/datacompdr", options).identity["transform"]

    assert found["mean"] == list(open_clip.OPENAI_DATASET_MEAN) and other["mean"] == [0.0, 0.0, 0.0]
    assert found["std"] == other["std"] == [0.25] * 3
    assert (found["interpolation"], other["interpolation"]) == ("bicubic", "bilinear")


def test_text_towers_that_need_more_than_is_installed_are_refused_plainly(tmp_path):
    config = {**VIT, "text_cfg": {**TEXT, "hf_model_name": str(Path("nobody") / "nothing")}}

    with pytest.raises(BackboneError, match="cannot be built from its configuration"):
        load_backbone(written(config, tmp_path), RANDOM)
