"""ILA: grids that shrink, where it starts, and what it refuses."""

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
from featurecache.peft._published import published, set_published
from tests.featurecache.peft.contract import directed, pictures, plain


def vit(side: int | tuple[int, int] = 96, registers: int = 0, pool: str = "token", depth: int = 6) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": side, "embed_dim": 32, "depth": depth, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_base_patch16_224", reg_tokens=registers, global_pool=pool, **shape).eval()


def cropping(module: Any, images: torch.Tensor, after: tuple[int, ...]) -> torch.Tensor:
    """Return the logits of a plain ViT, from whose grid the border is cut after some blocks."""
    (height, width), prefix = module.patch_embed.grid_size, module.num_prefix_tokens
    tokens = module.norm_pre(module._pos_embed(module.patch_embed(images)))
    for number, block in enumerate(module.blocks):
        tokens = block(tokens)
        if number in after:
            grid = tokens[:, prefix:].unflatten(1, (height, width))[:, 1:-1, 1:-1]
            height, width = height - 2, width - 2
            tokens = torch.cat([tokens[:, :prefix], grid.flatten(1, 2)], 1)
    return module.forward_head(module.norm(tokens))


@pytest.mark.parametrize("name", ["ila", "ila_plus", "ila_plus_plus"])
@pytest.mark.parametrize(("side", "registers"), [(96, 0), ((96, 128), 4), (448, 1)])
def test_with_centres_passed_on_the_first_logits_are_those_of_the_backbone_on_the_cropped_grid_to_the_bit(
    name, side, registers
):
    module = vit(side, registers)
    images = torch.randn(1, 3, *((side, side) if isinstance(side, int) else side))
    before = cropping(module, images, (1, 3))

    adapt(name, module, {"skip": "centre"})

    assert torch.equal(module(images), before)


@pytest.mark.parametrize(("side", "registers"), [(96, 0), ((96, 128), 4), (448, 0)])
@pytest.mark.parametrize("options", [{"keep": "all"}, {"inside": "convpass"}, {"keep": "0,2", "inside": "adapter"}])
def test_where_the_grid_is_kept_they_are_those_of_the_backbone(options, side, registers):
    module = vit(side, registers, depth=3)
    images = torch.randn(1, 3, *((side, side) if isinstance(side, int) else side))
    before = module(images)

    adapt("ila", module, {"down": "none", **options})

    assert torch.equal(module(images), before)


def test_the_published_start_is_not():
    module = vit()
    before = module(pictures())

    adapt("ila", module, {"down": "none", "keep": "all", "compat": "published"})

    assert not torch.allclose(module(pictures()), before)


def test_layers_are_laid_out_on_the_grids_they_have():
    module: Any = vit((96, 128), registers=2)
    adapted = adapt("ila", module, {})

    layers = module.forward_intermediates(torch.randn(2, 3, 96, 128), indices=[0, 1, 3, 5], intermediates_only=True)
    rows = module.forward_intermediates(torch.randn(2, 3, 96, 128), output_fmt="NLC", return_prefix_tokens=True)[1]

    assert [tuple(layer.shape[2:]) for layer in layers] == [(6, 8), (4, 6), (2, 4), (2, 4)]
    assert [patches.shape[1] for patches, _ in rows] == [48, 24, 24, 8, 8, 8]
    assert adapted.tokens_per_layer == (51, 51, 27, 27, 11, 11)


def test_images_of_another_size_have_another_grid():
    module = timm.create_model("test_vit", img_size=96, dynamic_img_size=True).eval()
    adapted = adapt("ila", module, {"down": "1"})

    layers = adapted.module.forward_intermediates(torch.randn(1, 3, 64, 112), intermediates_only=True)

    assert [tuple(layer.shape[2:]) for layer in layers] == [(4, 7), *[(2, 5)] * 5]


@pytest.mark.parametrize("skip", ["centre", "mean", "sum", "ones", "xavier", "dense", "average"])
def test_every_skip_begins_as_its_name_says(skip):
    adapted = adapt("ila", vit(), {"skip": skip, "down": "1"})
    part = adapted.module.blocks[1].ila_down
    grid = torch.randn(2, 32, 5, 5)

    passed = part.skip(grid)

    summed = torch.nn.functional.avg_pool2d(grid, 3, 1) * 9
    wanted = {
        "centre": grid[:, :, 1:-1, 1:-1],
        "mean": summed / 9,
        "average": summed / 9,
        "ones": summed,
        "sum": summed,
    }
    if skip in wanted:
        torch.testing.assert_close(passed, wanted[skip], atol=0.05 if skip == "sum" else 1e-5, rtol=1e-4)
    assert passed.shape == (2, 32, 3, 3)


def test_the_class_token_learns_unless_it_is_told_not_to():
    assert "cls_token" in adapt("ila", vit(), {}).trainable
    assert "cls_token" not in adapt("ila", vit(), {"train_cls": False}).trainable


def test_statistics_of_batch_norms_move_in_training_and_are_kept():
    adapted = adapt("ila", vit(), {})
    before = adapted.state()

    adapted.train(True)
    adapted.embed(pictures())

    moved = {name for name, value in adapted.state().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in adapted.kept if name not in adapted.trainable}
    assert not any(part.training for part in adapted.module.blocks[0].modules())


def test_the_published_code_drops_inside_frozen_blocks_too():
    adapted = adapt("ila", vit(), {"compat": "published", "dropout": 0.0})

    adapted.train(True)
    tokens = torch.randn(1, 37, 32)
    ours, again = adapted.module.blocks[0](tokens), adapted.module.blocks[0](tokens)
    adapted.train(False)

    assert not torch.equal(ours, again)
    assert not any(part.training for part in adapted.module.modules())


def test_between_backbone_and_trained_the_branches_are_scaled():
    adapted = adapt("ila", vit(), {"down": "none", "keep": "5", "train_cls": False, "norm": "ln"})
    nn.init.normal_(adapted.module.blocks[5].ila_keep.up.weight)
    seen: dict[float, torch.Tensor] = {}
    adapted.module.norm.register_forward_pre_hook(lambda _, given: seen.update({float(len(seen)): given[0]}))

    for alpha in (0.0, 0.5, 1.0):
        adapted.scale(alpha)
        adapted.embed(pictures())

    torch.testing.assert_close(seen[1.0] - seen[0.0], (seen[2.0] - seen[0.0]) / 2)


def test_a_copy_of_a_model_with_the_method_is_whole():
    adapted = adapt("ila_plus_plus", vit(), {"start": "random"})
    directed(adapted.embed(pictures())).backward()
    twin: Any = copy.deepcopy(adapted.module)
    before = twin(pictures())

    nn.init.zeros_(adapted.module.blocks[1].ila_down.skip.weight)

    assert torch.equal(twin(pictures()), before)
    assert not torch.equal(adapted.module(pictures()), before)
    assert twin.forward_intermediates(pictures(), indices=[5], intermediates_only=True)[0].shape[2:] == (2, 2)


@pytest.mark.parametrize(("options", "said"), [
    ({"down": "1,6"}, "down 6 lies outside the model, whose 6 blocks are 0-5"),
    ({"keep": "9"}, "keep 9 lies outside the model"),
    ({"down": "0-3"}, "the grid of 6x6 patches cannot lose 8 rows and columns .* name fewer blocks in down"),
    ({"kernel": 2, "keep": "rest"}, "an even kernel cannot keep the grid, got 2: give 3, 5"),
    ({"down": "1", "keep": "1,2"}, "down and keep both name block 1"),
    ({"down": "none"}, "there is nothing to train"),
    ({"norm": "bn,gn"}, "norm must be one of bn, ln, none, or three of them as bn,ln,none, got 'bn,gn'"),
    ({"dropout": 1.0, "rank": 0}, "2 problems"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        adapt("ila", vit(), options)


def test_an_attention_that_knows_positions_is_refused():
    with pytest.raises(BackboneError, match="cannot take the method ila: its attention knows where each patch stands"):
        adapt("ila", plain(name="test_vit_relpos"), {})


def test_an_even_kernel_shrinks_by_an_odd_number():
    adapted = adapt("ila", vit(), {"kernel": 2})

    assert adapted.tokens_per_layer == (37, 37, 26, 26, 17, 17)
    assert adapted.embed(pictures()).shape == (6, 32)


def test_with_the_class_token_frozen_blocks_before_the_first_module_keep_nothing():
    adapted = adapt("ila", vit(), {"train_cls": False})
    adapted.train(True)

    kept = kept_by(adapted.module, lambda: adapted.embed(pictures())).blocks

    assert kept[:2] == (0, 0) and all(kept[2:])


def test_statistics_come_back_with_a_published_state_that_has_none_of_their_counts():
    adapted, other = (adapt("ila", vit(), {"start": "random"}) for _ in range(2))
    theirs = published(adapted, "ila", adapted.state())

    set_published(other, "ila", {name: value for name, value in theirs.items() if "num_batches" not in name})

    assert {"class_token", "encoder.ila_ds.1.adapter_conv.1.0.running_mean"} < set(theirs)
    assert torch.equal(other.embed(pictures()), adapted.embed(pictures()))
