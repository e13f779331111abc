"""Models of open_clip with random weights: every kind of image tower."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch

from featurecache.backbones import BackboneOptions, Request, load_backbone
from tests.featurecache.backbones.clip_samples import (
    COCA,
    RESNET,
    TIMM,
    VIT,
    attention_pooled,
    captured,
    changed,
    resnet_features,
    vit_features,
    written,
)  # fmt: skip
from tests.featurecache.backbones.contract import CELLS, BackboneContract
from tests.featurecache.backbones.second_route import embedding_of, features_of, images_for

RANDOM = BackboneOptions(weights="random:0")


class ClipContract(BackboneContract):
    """The promises of a model whose images and texts share a space."""

    config: ClassVar[dict[str, Any]]
    changes: ClassVar = {"activation": {"architecture": {"quick_gelu": True}}, "norm": {"norm": "none"}}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def named(cls, tmp_path_factory):
        cls.name = written(cls.config, tmp_path_factory.mktemp("clip"))

    def tower(self, module):
        return module.visual

    def test_the_projection_is_what_the_model_itself_says_of_an_image(self, backbone, images, features):
        with torch.no_grad():
            found = backbone.module.encode_image(images, normalize=False)

        assert features["projected"].shape == (2, backbone.projected_dim)
        torch.testing.assert_close(features["projected"], found, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-2)

    def test_layers_and_vectors_come_from_one_pass(self, backbone, images, everything):
        passes = []
        hook = backbone.module.visual.register_forward_hook(lambda *_: passes.append("whole"))
        first = next(m for m in backbone.module.visual.modules() if isinstance(m, torch.nn.Conv2d))
        other = first.register_forward_hook(lambda *_: passes.append("first"))

        backbone.forward(images, everything)

        hook.remove()
        other.remove()
        assert passes == ["first"]


class TestVisionTransformer(ClipContract):
    config = VIT
    changes: ClassVar = {**BackboneContract.changes, **ClipContract.changes, "image size": {"image_size": 48}}

    def embedding_again(self, module, images):
        return captured([module.visual.ln_post], images, module.visual)[0][:, 0]

    def features_again(self, module, images):
        return vit_features(module.visual, images, CELLS)


class TestAveragedVisionTransformer(TestVisionTransformer):
    """The norm comes after the mean of the patches."""

    config = changed(VIT, pool_type="avg", final_ln_after_pool=True)
    changes: ClassVar = {"norm": {"norm": "none"}}

    def embedding_again(self, module, images):
        return captured([module.visual.ln_post], images, module.visual)[0]


class TestCoCa(TestVisionTransformer):
    """Attention pools, and the norm is of its output, not of the stream; the widths are equal on purpose."""

    config = COCA
    changes: ClassVar = {"weights": {"weights": "random:1"}}

    def tower(self, module):
        return torch.nn.Identity()

    def test_the_projection_is_what_the_model_itself_says_of_an_image(self, backbone, images, features):
        with torch.no_grad():
            pooled, _ = backbone.module.visual(images)

        torch.testing.assert_close(features["projected"], pooled)


class TestModifiedResNet(ClipContract):
    config = RESNET
    changes: ClassVar = {"weights": {"weights": "random:1"}, "text": {"architecture": {"text_cfg.layers": 1}}}
    embedding_tolerance = 1e-5

    def embedding_again(self, module, images):
        return attention_pooled(module.visual, images)

    def features_again(self, module, images):
        return resnet_features(module.visual, images, CELLS)


class TestTimmTower(ClipContract):
    config = TIMM
    changes: ClassVar = {"weights": {"weights": "random:1"}, "image size": {"image_size": 96}}

    def tower(self, module):
        return module.visual.trunk

    def embedding_again(self, module, images):
        return embedding_of(module.visual.trunk, images)

    def features_again(self, module, images):
        return features_of(module.visual.trunk, images, CELLS)


class TestTimmTowerWhoseClassifierProjects(TestTimmTower):
    config = changed(TIMM, timm_proj=None, timm_pool="token")
    changes: ClassVar = {"weights": {"weights": "random:1"}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return written(VIT, tmp_path_factory.mktemp("clip"))


def loaded(name: str, **options: Any):
    return load_backbone(name, dataclasses.replace(RANDOM, **options))


@pytest.mark.parametrize(("config", "stages"), [
    (VIT, lambda visual: list(visual.transformer.resblocks)),
    (RESNET, lambda visual: [visual.avgpool, visual.layer1, visual.layer2, visual.layer3, visual.layer4]),
    (TIMM, lambda visual: list(visual.trunk.blocks)),
], ids=["vit", "resnet", "timm"])  # fmt: skip
def test_a_forward_stops_at_the_last_layer_that_is_needed(config, stages, tmp_path):
    backbone, ran = loaded(written(config, tmp_path)), []
    for index, stage in enumerate(stages(backbone.module.visual)):
        stage.register_forward_hook(lambda *_, index=index: ran.append(index))

    backbone.forward(images_for(backbone, 1), Request((0, 1), ("mean",), embedding=False))

    assert ran == [0, 1]


def test_layers_under_the_final_norm_end_in_the_embedding(tiny):
    backbone = loaded(tiny)

    features = backbone.forward(images_for(backbone), Request((2,), ("cls",)))

    assert [(layer.width, layer.norm) for layer in backbone.layers] == [(32, "ln_post")] * 3
    torch.testing.assert_close(features["layers/cls/02"], features["embedding"])


def test_norm_none_gives_the_raw_stream(tiny):
    backbone = loaded(tiny, norm="none")
    images = images_for(backbone)

    (output,) = captured([backbone.module.visual.transformer.resblocks[-1]], images, backbone.module.visual)

    torch.testing.assert_close(backbone.forward(images, Request((2,), ("cls",)))["layers/cls/02"], output[:, 0])
    assert {layer.norm for layer in backbone.layers} == {"none"}


def test_equal_keys_with_another_activation_are_other_features_and_another_identity(tiny):
    plain, quick = loaded(tiny), loaded(tiny, architecture={"quick_gelu": True})
    images = images_for(plain)

    assert plain.identity["weights"] == quick.identity["weights"]
    assert (plain.identity["activation"], quick.identity["activation"]) == (["GELU"], ["QuickGELU"])
    features = [backbone.forward(images, Request())["embedding"] for backbone in (plain, quick)]
    assert not torch.allclose(*features, atol=1e-4)
