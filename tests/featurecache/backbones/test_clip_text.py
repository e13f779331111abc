"""The text side of models of open_clip: every way of pooling, templates by name, file and word."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from featurecache.backbones import BackboneOptions, _clip_text, load_backbone
from featurecache.errors import BackboneError, ConfigError
from featurecache.features import ArraySpec
from featurecache.requests import request_of, requested
from tests.featurecache.backbones.clip_samples import COCA, RESNET, TEXT, TIMM, VIT, changed, written

CLASSES, TEMPLATES = ("owl", "barn_door", "Sealyham terrier"), ("a photo of a {}.", "{} in a {} mood")
PROMPTS = [
    "a photo of a owl.", "owl in a owl mood", "a photo of a barn door.", "barn door in a barn door mood",
    "a photo of a Sealyham terrier.", "Sealyham terrier in a Sealyham terrier mood",
]  # fmt: skip

EOS = {**VIT, "custom_text": True, "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407}}
CONFIGS = {"argmax": VIT, "eos": EOS, "last": TIMM, "own token": COCA}


@pytest.fixture(scope="module", params=CONFIGS)
def backbone(request, tmp_path_factory):
    name = written(CONFIGS[request.param], tmp_path_factory.mktemp("clip"), request.param.replace(" ", "-"))
    return load_backbone(name, BackboneOptions(weights="random:0"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_backbone(written(VIT, tmp_path_factory.mktemp("clip")), BackboneOptions(weights="random:0"))


def encoded(backbone) -> torch.Tensor:
    """Return (C, P, E) straight from the model."""
    with torch.no_grad():
        return backbone.module.encode_text(backbone.text.tokenize(PROMPTS), normalize=False).unflatten(0, (3, 2))


def test_the_embedding_is_what_the_model_itself_says_of_every_prompt_and_not_normalised(backbone):
    found = backbone.text.features(CLASSES, TEMPLATES)["text/embedding"]

    assert found.shape == (3, 2, backbone.projected_dim) and found.dtype == torch.float32
    torch.testing.assert_close(found, encoded(backbone))
    assert not torch.allclose(found.norm(dim=-1), torch.ones(3, 2), atol=1e-3)


def test_the_last_layer_is_what_is_projected_to_the_embedding(backbone):
    owner = getattr(backbone.module, "text", backbone.module)

    features = backbone.text.features(CLASSES, TEMPLATES)

    assert features["text/eot"].shape == (TEXT["layers"], 3, 2, TEXT["width"])
    weights = owner.text_projection
    with torch.no_grad():
        again = weights(features["text/eot"][-1]) if callable(weights) else features["text/eot"][-1] @ weights
    torch.testing.assert_close(again, features["text/embedding"])


@pytest.mark.parametrize("norm", ["final", "none"])
def test_layers_are_the_outputs_of_the_blocks_at_the_end_token(tiny, norm):
    text, module = dataclasses.replace(tiny.text, normed=norm == "final"), tiny.module
    ids, outputs = text.tokenize(PROMPTS), []
    hooks = [block.register_forward_hook(lambda *a: outputs.append(a[2])) for block in module.transformer.resblocks]
    with torch.no_grad():
        module.encode_text(ids)
    for hook in hooks:
        hook.remove()

    found = text.features(CLASSES, TEMPLATES)["text/eot"].flatten(1, 2)

    ends = [row.index(49407) for row in ids.tolist()]
    for layer, output in zip(found, outputs, strict=True):
        whole = module.ln_final(output) if norm == "final" else output
        torch.testing.assert_close(layer, torch.stack([whole[row, end] for row, end in enumerate(ends)]))


def test_norm_none_reaches_the_text_side(tiny):
    raw = load_backbone(tiny.origin["name"], BackboneOptions(weights="random:0", norm="none"))

    features = [b.text.features(["owl"], ["a {}"]) for b in (tiny, raw)]

    assert not torch.allclose(features[0]["text/eot"], features[1]["text/eot"], atol=1e-2)
    assert torch.equal(features[0]["text/embedding"], features[1]["text/embedding"])


def test_the_projections_lead_both_last_layers_into_the_space_of_image_and_text(backbone):
    owner, text = getattr(backbone.module, "text", backbone.module), backbone.text.features(CLASSES, TEMPLATES)
    bias = getattr(owner.text_projection, "bias", None)
    images = backbone.forward(torch.randn(2, *backbone.input_size), requested(backbone, layers="none", tokens="auto"))

    space = backbone.text.space()

    assert {len(values) for values in space.values()} == {1}
    assert not [name for name, values in space.items() if values.dtype != torch.float32 or values.requires_grad]
    torch.testing.assert_close(images["embedding"] @ space["text/image_projection"][0], images["projected"])
    without_bias = text["text/embedding"] - (0 if bias is None else bias.detach())
    torch.testing.assert_close(text["text/eot"][-1] @ space["text/projection"][0], without_bias)
    assert space["text/logit_scale"].shape == (1, 1, 1)
    assert space["text/logit_scale"].item() == pytest.approx(backbone.module.logit_scale.item())


def test_the_projection_of_a_resnet_is_the_last_map_of_its_pooling_without_the_bias(tmp_path):
    backbone = load_backbone(written(RESNET, tmp_path), BackboneOptions(weights="random:0"))
    images = backbone.forward(torch.randn(2, *backbone.input_size), requested(backbone, layers="none", tokens="auto"))

    matrix = backbone.text.space()["text/image_projection"][0]

    bias = backbone.module.visual.attnpool.c_proj.bias.detach()
    torch.testing.assert_close(images["embedding"] @ matrix + bias, images["projected"])


def test_no_projection_is_the_identity_and_one_of_two_layers_is_left_out(tmp_path):
    plain = {**TIMM, "embed_dim": 64, "text_cfg": {**TIMM["text_cfg"], "width": 64, "proj_type": "none"}}
    models = [
        load_backbone(
            written(changed(config, timm_proj=way, timm_pool="avg"), tmp_path, way), BackboneOptions(weights="random:0")
        )
        for config, way in ((plain, "none"), (TIMM, "mlp"))
    ]

    none, mlp = (model.text.space() for model in models)

    assert torch.equal(none["text/image_projection"], torch.eye(64)[None])
    assert torch.equal(none["text/projection"], torch.eye(64)[None])
    assert sorted(mlp) == ["text/logit_scale", "text/projection"]


def test_many_prompts_go_through_in_parts_with_the_same_numbers(tiny, monkeypatch):
    whole = tiny.text.features(CLASSES, TEMPLATES)
    monkeypatch.setattr(_clip_text, "BATCH", 4)

    parts = tiny.text.features(CLASSES, TEMPLATES)

    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values)


def test_prompts_are_every_template_with_every_name_and_underscores_are_spaces(tiny):
    asked: list[str] = []
    text = dataclasses.replace(tiny.text, tokenize=lambda texts: asked.extend(texts) or tiny.text.tokenize(texts))

    text.features(CLASSES, TEMPLATES)

    assert asked == PROMPTS


def test_sets_of_templates_have_names(tiny):
    many, few = (tiny.text.templates(name) for name in ("openai-imagenet", "simple_imagenet"))

    assert (len(many), len(few)) == (80, 7) and set(few) <= set(many)
    assert many[0] == "a bad photo of a {}." and all("{}" in text for text in many)


def test_a_template_can_be_typed_or_lie_in_a_file(tiny, tmp_path):
    (tmp_path / "prompts.txt").write_text("a photo of a {}.\n\n  art of the {}.\n")

    assert tiny.text.templates("a {} at night") == ("a {} at night",)
    assert tiny.text.templates(str(tmp_path / "prompts.txt")) == ("a photo of a {}.", "art of the {}.")


@pytest.mark.parametrize("text", ["", "a photo\nof a {}.\nart"])
def test_a_file_without_places_for_the_name_is_refused_with_every_such_line(tiny, tmp_path, text):
    (tmp_path / "prompts.txt").write_text(text)

    with pytest.raises(
        ConfigError, match="'a photo' has no {}.*\n.*'art' has no {}" if text else "there is no template"
    ):
        tiny.text.templates(str(tmp_path / "prompts.txt"))


def test_words_that_name_no_templates_are_answered_with_the_nearest(tiny):
    with pytest.raises(
        ConfigError, match="openai-imagenet, simple-imagenet, a file.*got 'openai-imagnet'.*openai-imagenet"
    ):
        tiny.text.templates("openai-imagnet")


def test_nothing_to_say_is_refused(tiny):
    with pytest.raises(ConfigError, match="no class names"):
        tiny.text.features([], TEMPLATES)
    with pytest.raises(ConfigError, match="'a photo' has no {}"):
        tiny.text.features(CLASSES, ["a photo"])


def test_a_tower_of_another_vocabulary_is_refused_before_it_fails(tmp_path):
    config = {**VIT, "text_cfg": {**TEXT, "vocab_size": 60}}
    backbone = load_backbone(written(config, tmp_path), BackboneOptions(weights="random:0"))

    with pytest.raises(BackboneError, match="ids up to 49407, and this text tower knows 60 words"):
        backbone.text.features(CLASSES, TEMPLATES)


def test_a_tokenizer_that_cannot_be_had_is_missed_only_when_it_is_used(tmp_path):
    config = {**VIT, "text_cfg": {**TEXT, "hf_tokenizer_name": str(tmp_path / "nothing")}}
    backbone = load_backbone(written(config, tmp_path), BackboneOptions(weights="random:0"))

    with pytest.raises(BackboneError, match=r"the tokenizer of this text tower cannot be had \("):
        backbone.text.features(CLASSES, TEMPLATES)


def test_a_store_of_such_a_model_holds_the_projected_vectors_always(tiny):
    asked = requested(tiny, "last", "auto")

    assert asked.projected and asked.tokens == ("cls",)
    again = request_of(("cls",), [ArraySpec("projected", (24,), "float16"), ArraySpec("embedding", (32,), "float16")])
    assert again.projected and again.embedding and not again.layers
    assert not requested(load_backbone("demo"), "last", "auto").projected
