"""Names of models elsewhere point to the same weights here, and every name they point to exists."""

from __future__ import annotations

import open_clip
import pytest
import timm

from featurecache.backbones import BackboneOptions, load_backbone
from featurecache.backbones._hub_names import (
    ALIKE,
    OPENAI,
    SECOND,
    TORCH_HUB,
    TORCHVISION,
    TRANSFORMERS,
    describe_foreign,
    open_clip_repositories,
)
from featurecache.errors import UnknownNameError

SAME = {**TRANSFORMERS, **TORCH_HUB, **OPENAI, **TORCHVISION}


def test_every_name_that_is_pointed_to_exists_with_its_weights():
    tagged = set(timm.list_models(pretrained=True))
    pairs = {f"{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()}
    known = {*(f"timm:{name}" for name in tagged), *(f"open_clip:{pair}" for pair in pairs)}

    assert {elsewhere: here for elsewhere, here in SAME.items() if here not in known} == {}
    assert set(open_clip_repositories().values()) <= known
    assert [name for name in SECOND if f"timm:{name}.tv2_in1k" not in known] == []
    assert [here for here in ALIKE.values() if not timm.is_model(here.removeprefix("timm:"))] == []


@pytest.mark.parametrize("table", [TRANSFORMERS, TORCH_HUB, OPENAI])
def test_every_name_of_a_table_is_found(table):
    assert [name for name, here in table.items() if f"--backbone {here}." not in describe_foreign(name)] == []
    assert [name for name, here in table.items() if f"--backbone {here}." not in describe_foreign(name.upper())] == []


@pytest.mark.parametrize(("name", "here"), [
    ("facebook/dinov2-small", "timm:vit_small_patch14_dinov2.lvd142m"),
    ("dinov2_vits14", "timm:vit_small_patch14_dinov2.lvd142m"),
    ("dinov2_vitb14_reg", "timm:vit_base_patch14_reg4_dinov2.lvd142m"),
    ("google/vit-base-patch16-224", "timm:vit_base_patch16_224.orig_in21k_ft_in1k"),
    ("openai/clip-vit-base-patch32", "open_clip:ViT-B-32-quickgelu/openai"),
    ("microsoft/resnet-50", "timm:resnet50.a1_in1k"),
    ("facebook/dino-vits16", "timm:vit_small_patch16_224.dino"),
    ("facebook/deit-tiny-patch16-224", "timm:deit_tiny_patch16_224.fb_in1k"),
    ("facebook/convnext-tiny-224", "timm:convnext_tiny.fb_in1k"),
    ("microsoft/swin-tiny-patch4-window7-224", "timm:swin_tiny_patch4_window7_224.ms_in1k"),
    ("ViT-B/32", "open_clip:ViT-B-32-quickgelu/openai"),
    ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
    ("apple/DFN5B-CLIP-ViT-H-14", "open_clip:ViT-H-14-quickgelu/dfn5b"),
    ("google/siglip-base-patch16-224", "open_clip:ViT-B-16-SigLIP/webli"),
    ("resnet50_weights", "timm:resnet50.tv_in1k"),
    ("ResNet50_Weights.IMAGENET1K_V2", "timm:resnet50.tv2_in1k"),
    ("ResNet18_Weights.DEFAULT", "timm:resnet18.tv_in1k"),
    ("regnet_y_400mf", "timm:regnety_004.tv2_in1k"),
    ("vit_b_16", "timm:vit_base_patch16_224"),
    ("timm/resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
])  # fmt: skip
def test_a_name_from_elsewhere_is_answered_with_the_name_here(name, here):
    with pytest.raises(UnknownNameError, match=rf"no backbone '{name}': .* --backbone {here}[.,]"):
        load_backbone(name, BackboneOptions(weights="random:0"))


@pytest.mark.parametrize("written", [
    "timm:{}", "hf-hub:{}", "hf_hub:{}", "transformers:{}", "open_clip:{}", "https://huggingface.co/{}", "huggingface:{}",
])  # fmt: skip
def test_whatever_is_put_before_such_a_name_it_is_recognised(written):
    with pytest.raises(UnknownNameError, match=r"--backbone timm:vit_small_patch14_dinov2.lvd142m\."):
        load_backbone(written.format("facebook/dinov2-small"))


@pytest.mark.parametrize(("name", "here"), [
    ("torchvision:resnet50", "timm:resnet50.tv_in1k"), ("facebookresearch/dinov2:dinov2_vits14", "timm:vit_small_patch14_dinov2.lvd142m"),
    ("clip:ViT-L/14", "open_clip:ViT-L-14-quickgelu/openai"), ("torch.hub:dino_vitb8", "timm:vit_base_patch8_224.dino"),
])  # fmt: skip
def test_names_of_other_libraries_are_recognised_behind_their_library(name, here):
    with pytest.raises(UnknownNameError, match=f"--backbone {here}"):
        load_backbone(name)


def test_an_unknown_repository_is_told_how_repositories_are_read():
    with pytest.raises(
        UnknownNameError, match=r"no model called 'somebody/thing'.* is read as hf-hub:somebody/thing where"
    ):
        load_backbone("somebody/thing")


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "vit_tiny_patch16_224", "timm:densenet121"])
def test_names_that_timm_has_are_no_foreign_names(name):
    assert load_backbone(name, BackboneOptions(weights="random:0", device="meta")).name.startswith("timm:")


def test_a_typing_error_is_answered_with_the_nearest_name_as_before():
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        load_backbone("resnet18x")
