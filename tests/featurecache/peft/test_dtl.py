"""DTL and DTL+: what they leave free, where they start, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

from featurecache.costs import kept_by
from featurecache.errors import BackboneError, ConfigError
from featurecache.peft import adapt
from tests.featurecache.peft.contract import directed, pictures, plain

SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2, 4, 2), "num_heads": (1, 2, 2, 2)}


def swin() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **SWIN).eval()


def with_registers() -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    return timm.create_model("vit_base_patch16_224", num_classes=3, reg_tokens=3, **shape).eval()


@pytest.mark.parametrize("name", ["dtl", "dtl_plus"])
@pytest.mark.parametrize(("build", "shape", "first"), [(with_registers, (32, 48), 2), (swin, (64, 64), 7)])
def test_blocks_before_the_first_injection_keep_nothing_for_the_gradient(name, build, shape, first):
    adapted = adapt(name, build(), {})
    adapted.train(True)

    kept = kept_by(adapted.module, lambda: adapted.embed(torch.randn(2, 3, *shape))).blocks

    assert kept[: first + 1] == (0,) * (first + 1)
    assert all(kept[first + 1 :]) and len(kept) > first + 1


@pytest.mark.parametrize("name", ["dtl", "dtl_plus"])
@pytest.mark.parametrize(("build", "shape"), [(with_registers, (32, 48)), (swin, (64, 64))])
def test_at_the_start_the_logits_are_those_of_the_backbone_to_the_bit(name, build, shape):
    images, module = torch.randn(2, 3, *shape), build()
    before = module(images)

    adapt(name, module, {})

    assert torch.equal(module(images), before)


def trained(name: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    adapted = adapt(name, plain(depth=6), options)
    for value in adapted.parameters().values():
        nn.init.normal_(value, std=0.1)
    return adapted


def test_a_prefix_without_gradients_changes_no_gradient():
    found = {}
    for no_grad in (False, True):
        adapted = trained("dtl_plus", {"no_grad": no_grad, "injections": "3-5"})
        directed(adapted.embed(pictures())).backward()
        found[no_grad] = [p.grad for p in adapted.parameters().values()]

    assert all(torch.equal(one, other) for one, other in zip(found[False], found[True], strict=True))
    assert torch.is_grad_enabled()


def test_gradients_are_on_again_after_a_block_that_failed():
    adapted = trained("dtl", {"no_grad": True})
    adapted.module.blocks[0].mlp.fc1.register_forward_hook(lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        adapted.embed(pictures())

    assert torch.is_grad_enabled()


def test_a_unit_kernel_of_ones_is_no_mixing():
    adapted, plus = trained("dtl", {}), trained("dtl_plus", {"kernel": 1, "mixing": "identity"})
    values = {**plus.state(), **adapted.state(), "dtl.mixers.0.weight": torch.ones(64, 1, 1, 1)}

    plus.load(values)

    torch.testing.assert_close(plus.embed(pictures()), adapted.embed(pictures()))


def test_with_a_great_beta_the_side_state_is_rectified():
    adapted = trained("dtl", {"products": "0-5", "injections": "5", "beta": 1e6})
    seen = {}
    adapted.module.blocks[5].register_forward_pre_hook(lambda *_: seen.update(state=adapted.module.dtl.state))
    adapted.module.blocks[5].register_forward_hook(lambda _, __, out: seen.update(out=out), prepend=True)
    adapted.module.norm.register_forward_pre_hook(lambda _, given: seen.update(stream=given[0]))

    adapted.embed(pictures())

    torch.testing.assert_close(seen["stream"], seen["out"] + seen["state"].relu())
    assert adapted.module.dtl.state is None, "nothing is held beyond a pass"


def test_the_published_head_means_patches_before_the_norm_and_renames_nothing():
    ours, theirs = plain(depth=6), plain(seed=0, depth=6)
    adapt("dtl", ours, {"compat": "published"})
    own = {**plain(depth=6).state_dict()}
    other = timm.create_model("test_vit", img_size=96, global_pool="avg", fc_norm=True).eval()
    other.load_state_dict(
        {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: own[name] for name in own}
    )

    assert {name for name in ours.state_dict() if "dtl" not in name} == set(theirs.state_dict())
    torch.testing.assert_close(ours(pictures()), other(pictures()))


def test_a_copy_of_a_model_with_the_method_is_whole():
    adapted = trained("dtl_plus", {"compat": "published"})
    twin = copy.deepcopy(adapted.module)
    before = twin(pictures())

    nn.init.zeros_(adapted.module.dtl.products["0"].up.weight)

    assert torch.equal(twin(pictures()), before)
    assert not torch.equal(adapted.module(pictures()), before)


@pytest.mark.parametrize(("options", "said"), [
    ({"injections": "4-6"}, r"injections 4-6 lies outside the model, whose 6 blocks are 0-5"),
    ({"products": "5-2"}, "products 5-2"),
    ({"products": "3-5", "injections": "1-4"}, "names block 1, 2, but no product stands at or before it"),
    ({"injections": "none"}, "leaves nothing to train"),
    ({"products": "half"}, "products takes .* got 'half'"),
    ({"rank": 0}, "rank must be positive, got 0"),
    ({"beta": -1.0}, "beta must be positive"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        adapt("dtl", plain(depth=6), options)


def test_in_a_swin_the_first_product_must_stand_in_the_same_stage():
    with pytest.raises(ConfigError, match="names block 2, but no product stands at or before it of its own stage"):
        adapt("dtl", swin(), {"products": "0-1,3-9", "injections": "2-9"})


def test_another_kind_of_net_is_refused_and_told_what_would_do():
    with pytest.raises(BackboneError, match="ResNet cannot take the method dtl: it has no blocks of a transformer"):
        adapt("dtl", plain(name="test_resnet"), {})
