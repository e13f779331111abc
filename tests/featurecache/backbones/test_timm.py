"""Models of timm with random weights: every family of token layout, and those that timm keeps for tests."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import timm
import torch

from featurecache.backbones import BackboneOptions, Request, load_backbone
from tests.featurecache.backbones.contract import BackboneContract
from tests.featurecache.backbones.second_route import embedding_of, images_for

RANDOM = BackboneOptions(weights="random:0")
SMALL = BackboneOptions(weights="random:0", image_size=96)
"""Nets that take any size are tested at a cheap one."""

SHALLOW = {"depth": 4}
"""Blocks of the larger transformers: token layout and sizes do not depend on their number."""

CHANGES = BackboneContract.changes


class TestResNet(BackboneContract):
    name = "timm:resnet18"
    options = SMALL
    changes: ClassVar = {**CHANGES, "architecture": {"architecture": {"output_stride": 16}}}


class TestConvNeXt(BackboneContract):
    name = "timm:convnext_atto"
    options = SMALL
    changes: ClassVar = {"equal keys, another path": {"architecture": {"conv_mlp": True}}}


class TestSwin(BackboneContract):
    name = "timm:swin_tiny_patch4_window7_224"
    changes: ClassVar = {"norm": {"norm": "none"}}


class TestMobileNetWithTensorFlowPadding(BackboneContract):
    name = "timm:mobilenetv2_100"
    options = dataclasses.replace(SMALL, architecture={"pad_type": "same"})
    changes: ClassVar = {"padding": {"architecture": {}}}


class TestMixer(BackboneContract):
    name = "timm:mixer_s32_224"
    changes: ClassVar = {"norm": {"norm": "none"}}


class TestViTWithRegistersAtAnotherSize(BackboneContract):
    name = "timm:vit_small_patch14_reg4_dinov2"
    options = dataclasses.replace(RANDOM, image_size=98, architecture=SHALLOW)
    changes: ClassVar = {"image size": {"image_size": 112}}


class TestViTAtTwiceItsSize(BackboneContract):
    name = "timm:vit_tiny_patch16_224"
    options = dataclasses.replace(RANDOM, image_size=448, architecture=SHALLOW)
    changes: ClassVar = {"pooling": {"architecture": {**SHALLOW, "global_pool": "avg"}}}


class TestModelsThatTimmKeepsForTests(BackboneContract):
    changes: ClassVar = {"other weights": {"weights": "random:1"}}

    @pytest.fixture(scope="class", params=timm.list_models("test_*"))
    @classmethod
    def backbone(cls, request):
        cls.name = f"timm:{request.param}"
        return load_backbone(cls.name, cls.options)


def captured(modules, run):
    """Return what each of `modules` gave while `run` ran."""
    outputs = []
    hooks = [m.register_forward_hook(lambda _, __, output: outputs.append(output.detach())) for m in modules]
    run()
    for hook in hooks:
        hook.remove()
    return outputs


def test_layers_of_a_vit_are_the_outputs_of_its_blocks_under_the_final_norm():
    backbone = load_backbone("timm:test_vit", RANDOM)
    images, layers = images_for(backbone), tuple(layer.index for layer in backbone.layers)

    outputs = captured(backbone.module.blocks, lambda: embedding_of(backbone.module, images))

    features = backbone.forward(images, Request(layers, ("cls",)))
    assert len(outputs) == len(layers)
    for index, output in zip(layers, outputs, strict=True):
        torch.testing.assert_close(features[f"layers/cls/{index:02d}"], backbone.module.norm(output)[:, 0])
    torch.testing.assert_close(features[f"layers/cls/{layers[-1]:02d}"], features["embedding"])


def test_all_tokens_are_the_class_token_the_registers_and_the_patches_in_the_order_of_the_model():
    backbone = load_backbone("timm:vit_small_patch14_reg4_dinov2", TestViTWithRegistersAtAnotherSize.options)
    images = images_for(backbone, 1)

    (output,) = captured(backbone.module.blocks[1:2], lambda: embedding_of(backbone.module, images))

    features = backbone.forward(images, Request((1,), ("all", "cls", "register"), embedding=False))
    expected = backbone.module.norm(output)
    assert expected.shape[1] == 1 + 4 + 7 * 7
    torch.testing.assert_close(features["layers/all/01"], expected)
    torch.testing.assert_close(features["layers/cls/01"], expected[:, 0])
    torch.testing.assert_close(features["layers/register/01"], expected[:, 1:5])


def test_layers_of_a_resnet_are_its_stem_and_its_stages_without_a_norm():
    backbone = load_backbone("timm:resnet18", SMALL)
    images, module = images_for(backbone), backbone.module
    stages = [module.act1, module.layer1, module.layer2, module.layer3, module.layer4]

    outputs = captured(stages, lambda: embedding_of(module, images))

    features = backbone.forward(images, Request((0, 1, 2, 3, 4), ("mean",)))
    for index, output in enumerate(outputs):
        torch.testing.assert_close(features[f"layers/mean/{index:02d}"], output.mean((2, 3)))


def test_a_forward_stops_at_the_last_layer_that_is_needed():
    backbone = load_backbone("timm:test_vit", RANDOM)
    images, blocks = images_for(backbone), backbone.module.blocks

    ran = captured(blocks, lambda: backbone.forward(images, Request((0,), ("cls",), embedding=False)))

    assert len(ran) == 1 < len(blocks)


def test_norm_none_gives_the_raw_stream():
    backbone = load_backbone("timm:test_vit", dataclasses.replace(RANDOM, norm="none"))
    images = images_for(backbone)

    (output,) = captured(backbone.module.blocks[-1:], lambda: embedding_of(backbone.module, images))

    last = len(backbone.layers) - 1
    found = backbone.forward(images, Request((last,), ("cls",)))
    torch.testing.assert_close(found[f"layers/cls/{last:02d}"], output[:, 0])
    assert {layer.norm for layer in backbone.layers} == {"none"}
