"""Weights of models of open_clip: what is loaded, what is resized, and what is refused before it can do harm."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from featurecache.backbones import BackboneOptions, Request, load_backbone
from featurecache.errors import WeightsError
from tests.featurecache.backbones.clip_samples import RESNET, TIMM, VIT, written
from tests.featurecache.backbones.second_route import images_for
from tests.featurecache.backbones.test_weights import Bomb, pickled


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    return written(VIT, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def state(name):
    return load_backbone(name, BackboneOptions(weights="random:5")).module.state_dict()


def loaded(name: str, path: Path, **options: Any):
    return load_backbone(name, BackboneOptions(weights=str(path), **options))


def refusal(name: str, path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        loaded(name, path)
    return str(caught.value)


@pytest.mark.parametrize("wrapping", [
    lambda s: s,
    lambda s: {"state_dict": s, "epoch": 3},
    lambda s: {"state_dict": {f"module.{key}": value for key, value in s.items()}},
    lambda s: {**s, "logit_scale": s["logit_scale"][None]},
], ids=["bare", "trainer's", "many GPUs'", "scale of one number"])  # fmt: skip
def test_a_state_dict_is_found_under_the_usual_names(name, state, tmp_path, wrapping):
    backbone = loaded(name, pickled(wrapping(state), tmp_path / "weights.pt"))

    assert all(torch.equal(value, state[key]) for key, value in backbone.module.state_dict().items())
    assert backbone.identity == load_backbone(name, BackboneOptions(weights="random:5")).identity


def test_names_of_a_text_tower_from_before_it_was_one_are_understood(state, tmp_path):
    path = tmp_path / "old.safetensors"
    save_file(state, path)

    backbone = loaded(written({**VIT, "custom_text": True}, tmp_path), path)

    assert torch.equal(backbone.module.text.token_embedding.weight, state["token_embedding.weight"])


def test_loading_says_only_that_it_loads_and_moves_no_generator(name, state, tmp_path, caplog):
    save_file(state, tmp_path / "weights.safetensors")
    before = torch.get_rng_state()

    with caplog.at_level(logging.INFO):
        loaded(name, tmp_path / "weights.safetensors")

    (message,) = caplog.messages
    assert message.startswith("loading the backbone") and torch.equal(torch.get_rng_state(), before)


def test_position_embeddings_are_resized_for_another_image_size(name, state, tmp_path):
    save_file(state, tmp_path / "weights.safetensors")

    backbone = loaded(name, tmp_path / "weights.safetensors", image_size=48)

    found = backbone.module.visual.positional_embedding
    grid = state["visual.positional_embedding"][1:].T.unflatten(1, (4, 4))[None]
    expected = interpolate(grid, size=(6, 6), mode="bicubic", antialias=True)[0].flatten(1).T
    torch.testing.assert_close(found[1:], expected)
    assert backbone.input_size == (3, 48, 48)
    assert backbone.forward(images_for(backbone), Request((0,), ("all",)))["layers/all/00"].shape[1] == 37


def test_a_tower_of_timm_takes_another_image_size_after_its_weights(tmp_path):
    name = written(TIMM, tmp_path)
    native = load_backbone(name, BackboneOptions(weights="random:5"))
    save_file(native.module.state_dict(), tmp_path / "weights.safetensors")

    backbone = loaded(name, tmp_path / "weights.safetensors", image_size=96)

    assert backbone.forward(images_for(backbone), Request((0,), ("all",)))["layers/all/00"].shape[1] == 37
    weights = backbone.module.visual.trunk.patch_embed.proj.weight
    assert torch.equal(weights, native.module.visual.trunk.patch_embed.proj.weight)


def test_the_weights_of_another_architecture_are_refused_with_missing_and_unexpected_keys(state, tmp_path):
    save_file(state, tmp_path / "vit.safetensors")

    message = refusal(written(RESNET, tmp_path), tmp_path / "vit.safetensors")

    assert "vit.safetensors does not hold the weights of open_clip:tiny" in message
    assert "missing " in message and "visual.attnpool" in message
    assert "unexpected " in message and "visual.class_embedding" in message
    assert "Give a file of this architecture." in message


def test_weights_of_another_width_are_refused_with_both_shapes(name, state, tmp_path):
    save_file({**state, "visual.proj": torch.zeros(32, 8)}, tmp_path / "other.safetensors")

    assert "of another shape 1: visual.proj [32, 8], not [32, 24]" in refusal(name, tmp_path / "other.safetensors")


def test_a_partial_state_dict_is_refused_with_the_keys_it_lacks(name, state, tmp_path):
    save_file({key: value for key, value in state.items() if key != "ln_final.bias"}, tmp_path / "part.safetensors")

    assert "missing 1: ln_final.bias" in refusal(name, tmp_path / "part.safetensors")


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(name, tmp_path):
    path = pickled({"visual.proj": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")

    assert "holds more than tensors" in refusal(name, path)
    assert not (tmp_path / "ran").exists()


def torchscript(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for member in ("ViT/data.pkl", "ViT/constants.pkl", "ViT/code/__torch__.py", "ViT/version"):
            archive.writestr(member, b"3\n")
    return path


def test_an_archive_as_openai_published_it_is_refused_by_kind(name, tmp_path):
    assert "is a TorchScript archive, which holds code. Save its state_dict() as safetensors" in refusal(
        name, torchscript(tmp_path / "ViT-B-32.pt")
    )


def test_a_truncated_file_is_refused(name, state, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-1000])

    assert str(path) in refusal(name, path)


def test_a_missing_file_is_answered_with_the_way_out(name, tmp_path):
    assert refusal(name, tmp_path / "gone.pt") == (
        f"there is no weights file {tmp_path / 'gone.pt'}. Give --weights FILE, or --weights random:SEED."
    )


def test_an_architecture_alone_names_its_tags():
    with pytest.raises(WeightsError, match="open_clip:RN50 names no weights. Its tags: openai, .*open_clip:RN50/TAG"):
        load_backbone("open_clip:RN50")


def test_a_configuration_alone_names_the_way_out(name):
    with pytest.raises(WeightsError, match="tiny.json says what the model is, not its weights. Give --weights FILE"):
        load_backbone(name)


def test_a_download_that_fails_names_the_place_and_the_way_out(monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("the network is down")

    monkeypatch.setattr("featurecache.backbones._downloading.why_unreachable", lambda url: "")
    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)

    with pytest.raises(
        WeightsError,
        match=r"weights of open_clip:ViT-B-32/openai cannot be had from https://huggingface.co/timm/.*network is down"
        r".*Give --weights FILE, or --weights random:SEED",
    ):
        load_backbone("open_clip:ViT-B-32/openai")


def test_a_download_says_what_from_where_and_is_read_as_safely_as_any_file(monkeypatch, tmp_path, caplog):
    path = torchscript(tmp_path / "ViT-B-32.pt")
    monkeypatch.setattr("featurecache.backbones._downloading.why_unreachable", lambda url: "")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: str(path))

    with caplog.at_level(logging.INFO, logger="featurecache"), pytest.raises(WeightsError, match="TorchScript archive"):
        load_backbone("open_clip:ViT-B-32/laion2b-s34b-b79k")

    assert "weights of open_clip:ViT-B-32/laion2b_s34b_b79k: from https://huggingface.co/laion/" in caplog.text


def test_the_weights_of_a_tag_give_their_name_to_the_backbone(monkeypatch, tmp_path):
    options = BackboneOptions(weights="random:0", architecture={"vision_cfg.layers": 1, "text_cfg.layers": 1})
    drawn = load_backbone("open_clip:ViT-S-32-alt", options)
    save_file(drawn.module.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setattr("featurecache.backbones._downloading.why_unreachable", lambda url: "")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"hf_hub": "somewhere/"})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: str(tmp_path / "weights.safetensors"))

    tagged = load_backbone("open_clip:ViT-S-32-alt/best", BackboneOptions(architecture=options.architecture))

    assert (drawn.name, tagged.name) == ("open_clip:ViT-S-32-alt", "open_clip:ViT-S-32-alt/best")
    assert tagged.origin["name"] == "open_clip:ViT-S-32-alt/best" and tagged.origin["weights"] is None
    assert tagged.identity["weights"] == drawn.identity["weights"]
