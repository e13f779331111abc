"""Backbones of one's own: what a function may return, and what is said when it does not."""

from __future__ import annotations

import re
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from featurecache.backbones import BackboneOptions, Request, load_backbone
from featurecache.errors import BackboneError, ConfigError, UnknownNameError, WeightsError
from tests.featurecache.backbones import own_backbones
from tests.featurecache.backbones.contract import BackboneContract, EmbeddingContract

OWN = "python:tests.featurecache.backbones.own_backbones"


class TestOwnModuleOfTimmsKind(BackboneContract):
    name = f"{OWN}:vit"
    changes: ClassVar = {**BackboneContract.changes, "architecture": {"architecture": {"depth": 3}}}


class TestOwnModuleOfAnyKind(EmbeddingContract):
    name = f"{OWN}:colours"
    changes: ClassVar = {**EmbeddingContract.changes, "architecture": {"architecture": {"width": 4}}}

    def embedding_again(self, module, images):
        return torch.nn.functional.linear(images.mean((2, 3)), module.map.weight, module.map.bias)

    def test_it_has_no_layers_and_no_tokens(self, backbone):
        assert (backbone.layers, backbone.tokens, backbone.num_logits) == ((), (), 0)

    @pytest.mark.parametrize("request_", [Request((0,), ("mean",)), Request(logits=True)])
    def test_layers_and_logits_are_refused_with_the_interface_they_need(self, backbone, images, request_):
        with pytest.raises(BackboneError, match="gives its embedding only.*forward_intermediates.*--layers none"):
            backbone.forward(images, request_)


class TestReadyBackbone(BackboneContract):
    name = f"{OWN}:ready"
    options = BackboneOptions()
    changes: ClassVar = {}


def test_the_preprocessing_of_the_module_is_used_and_completed():
    backbone = load_backbone(f"{OWN}:vit", BackboneOptions(weights="random:0"))

    assert backbone.input_size == (3, 32, 32)
    assert backbone.identity["transform"]["mean"] == [0.5, 0.5, 0.5]
    assert backbone.identity["transform"]["std"] == pytest.approx([0.229, 0.224, 0.225])


def test_a_weights_file_is_loaded_strictly(tmp_path):
    given = own_backbones.colours().state_dict()
    save_file(given, tmp_path / "own.safetensors")
    save_file({"map.weight": torch.zeros(2, 3), "other": torch.zeros(1)}, tmp_path / "foreign.safetensors")

    backbone = load_backbone(f"{OWN}:colours", BackboneOptions(weights=str(tmp_path / "own.safetensors")))

    assert torch.equal(backbone.module.map.weight, given["map.weight"])
    lines = ("missing 1: map.bias", "unexpected 1: other", "of another shape 1: map.weight [2, 3], not [8, 3]")
    with pytest.raises(WeightsError, match=r"\n  ".join(map(re.escape, lines))):
        load_backbone(f"{OWN}:colours", BackboneOptions(weights=str(tmp_path / "foreign.safetensors")))


def test_a_module_of_the_current_folder_is_found_and_hides_none_of_the_environment(tmp_path, monkeypatch):
    (tmp_path / "at_hand.py").write_text("from tests.featurecache.backbones.own_backbones import colours as mine\n")
    (tmp_path / "timm.py").write_text("raise RuntimeError('the wrong timm')\n")
    monkeypatch.chdir(tmp_path)

    assert load_backbone("python:at_hand:mine", BackboneOptions(weights="random:0")).dim == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "python:nowhere_at_all:build",
            "no Python module 'nowhere_at_all' in the environment or in .*run from the folder",
        ),
        (f"{OWN}:colour", "has no function 'colour'. Did you mean 'colours'\\? Its functions: .*ready"),
        (f"{OWN}:NUMBER", "has no function 'NUMBER'"),
        (OWN, "is named python:package.module:function, got python:tests"),
    ],
)
def test_an_unknown_function_is_answered_with_what_there_is(name, message):
    with pytest.raises(UnknownNameError, match=message):
        load_backbone(name)


def test_a_module_that_lacks_a_package_says_which(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(BackboneError, match="needs_more cannot be imported: it needs 'a_package_that_is_not_there'"):
        load_backbone("python:needs_more:build")


def test_an_option_that_the_function_does_not_take_is_refused_with_its_signature():
    with pytest.raises(ConfigError, match=r"colours\(\*, width: 'int' = 8\).* does not take the options .*'height': 3"):
        load_backbone(f"{OWN}:colours", BackboneOptions(architecture={"height": 3}))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nonsense", "returned Tensor, but must return an nn.Module .* or a Backbone"),
        ("pixels", r"Identity must map \(B, 3, H, W\) to \(B, D\), but one image gave \(1, 3, 224, 224\)"),
    ],
)
def test_a_result_of_another_kind_is_refused(function, message):
    with pytest.raises(BackboneError, match=message):
        load_backbone(f"{OWN}:{function}")


def test_a_ready_backbone_names_every_option_it_cannot_take():
    options = BackboneOptions(weights="random:0", transform={"mean": 0}, image_size=64, norm="none", precision="fp16")

    with pytest.raises(ConfigError) as caught:
        load_backbone(f"{OWN}:ready_in_bf16", options)

    assert [p.partition("takes no ")[2].partition(":")[0] for p in caught.value.problems[:-1]] == [
        "weights", "transform", "image_size", "norm"
    ]  # fmt: skip
    assert "computes in bf16: give --precision bf16" in caught.value.problems[-1]
