"""Heads of the joint space: CLIP as it comes, vectors of the classes that begin there, a residual on the image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from featurecache.errors import ConfigError
from heads import HeadSpec
from heads._checkpoint import build_head
from tests.heads.samples import CLASSES, spec_of

NAMES = ("zero_shot", "clip_linear", "clip_adapter")


def spec() -> HeadSpec:
    return spec_of(widths={"projected": 16}, constants=("text/embedding", "text/logit_scale"))


def images() -> dict[str, Tensor]:
    return {"projected": 7 * torch.randn(9, 16, generator=torch.Generator().manual_seed(3))}


def zero_shot() -> Tensor:
    """Return the logits by their formula, class by class and image by image."""
    constants, rows = spec().constants, []
    for image in images()["projected"]:
        row = []
        for said in constants["text/embedding"]:
            mean = sum(one / one.norm() for one in said) / len(said)
            row.append(constants["text/logit_scale"].exp().item() * F.cosine_similarity(image, mean, dim=0))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_zero_shot_is_the_cosine_to_the_mean_of_the_texts_times_the_temperature_of_clip():
    head = build_head("zero_shot", spec(), {})

    assert list(head.parameters()) == [] and head.state_dict() == {}
    torch.testing.assert_close(head(images()), zero_shot())


def test_a_linear_classifier_starts_at_zero_shot_and_moves_its_vectors_alone():
    head = build_head("clip_linear", spec(), {})

    torch.testing.assert_close(head(images()), zero_shot())
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {"weight": (CLASSES, 16)}


def test_a_linear_classifier_may_start_anywhere():
    torch.manual_seed(0)
    head = build_head("clip_linear", spec(), {"start": "random"})

    assert not torch.allclose(head(images()), zero_shot(), atol=0.1)


def test_an_adapter_of_no_share_is_zero_shot_and_of_some_share_a_residual_before_the_length():
    torch.manual_seed(0)
    head = build_head("clip_adapter", spec(), {"reduction": 2, "ratio": 0.25})
    z, down, up = images()["projected"], head.adapter.down.weight, head.adapter.up.weight
    classes = F.normalize(F.normalize(spec().constants["text/embedding"], dim=-1).mean(1), dim=-1)

    moved = 0.25 * ((z @ down.T).relu() @ up.T).relu() + 0.75 * z

    expected = spec().constants["text/logit_scale"].exp().squeeze() * F.normalize(moved, dim=-1) @ classes.T
    torch.testing.assert_close(head(images()), expected)
    assert down.shape == (8, 16)
    head.adapter.ratio.zero_()
    torch.testing.assert_close(head(images()), zero_shot())


def test_a_projection_starts_at_that_of_clip_and_drops_features_of_length_one():
    wanted = ("text/embedding", "text/image_projection", "text/logit_scale")
    fitting = spec_of(widths={"layers/cls/05": 8}, constants=wanted)
    head = build_head("clip_projection", fitting, {"dropout": 0.5}).eval()
    x = {"layers/cls/05": 7 * torch.randn(9, 8, generator=torch.Generator().manual_seed(3))}
    classes = F.normalize(F.normalize(fitting.constants["text/embedding"], dim=-1).mean(1), dim=-1)
    z = F.normalize(x["layers/cls/05"] @ fitting.constants["text/image_projection"][0], dim=-1)
    scale = fitting.constants["text/logit_scale"].exp().squeeze()

    torch.testing.assert_close(head(x), scale * z @ classes.T)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {"weight": (8, 16)}
    head.train()
    torch.manual_seed(5)
    said = head(x)
    torch.manual_seed(5)
    torch.testing.assert_close(said, scale * F.dropout(z, 0.5) @ classes.T)
    with pytest.raises(ConfigError, match="one layer of 8 dimensions, .* got layers/cls/05 16. Leave --layers out"):
        build_head("clip_projection", replace(fitting, shapes={"layers/cls/05": (16,)}), {})
    with pytest.raises(ConfigError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        build_head("clip_projection", fitting, {"dropout": 1.0})


@pytest.mark.parametrize(("options", "message"), [
    ({"reduction": 0}, "reduction must be positive, got 0"), ({"ratio": 0.0}, r"ratio must lie in \(0, 1\], got 0.0"),
])  # fmt: skip
def test_an_adapter_out_of_range_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_head("clip_adapter", spec(), options)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_compared_is_refused_with_the_way_out(name):
    fitting = spec()
    two = replace(fitting, shapes={"projected": (16,), "embedding": (16,)})

    with pytest.raises(
        ConfigError, match=f"{name} needs text/embedding, text/logit_scale, .*with --prompts and --extend"
    ):
        build_head(name, replace(fitting, constants={}), {})
    with pytest.raises(ConfigError, match="text/embedding speaks of 4 classes, and there are 3"):
        build_head(name, replace(fitting, num_classes=3), {})
    with pytest.raises(ConfigError, match="the texts have 16 dimensions, the images 8: .* Leave --layers out"):
        build_head(name, replace(fitting, shapes={"embedding": (8,)}), {})
    with pytest.raises(ConfigError, match="reads the projected vector of an image, got projected, embedding"):
        build_head(name, two, {})
    with pytest.raises(ConfigError, match="tells classes apart by their names; this is a multilabel task"):
        build_head(name, replace(fitting, task="multilabel"), {})
