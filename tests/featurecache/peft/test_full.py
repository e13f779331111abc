"""Full fine-tuning: all that a feature passes through, deep layers faster where asked, batch norms with their statistics."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from featurecache.errors import BackboneError, ConfigError
from featurecache.peft import adapt
from tests.featurecache.peft.contract import pictures, plain


def test_all_is_trained_but_the_classifier_that_no_feature_passes_through():
    module = plain(depth=6)

    adapted = adapt("full", module, {})

    left = {name for name, _ in module.named_parameters()} - set(adapted.trainable)
    assert left == {"head.weight", "head.bias"}
    assert not any(module.get_parameter(name).requires_grad for name in left)


def test_each_layer_learns_slower_than_the_one_above_it():
    factors = adapt("full", plain(depth=6), {"layer_decay": 0.5}).trainable

    blocks = [factors[f"blocks.{i}.attn.qkv.weight"] for i in range(6)]
    assert [lower / upper for lower, upper in itertools.pairwise(blocks)] == pytest.approx([0.5] * 5)
    assert factors["patch_embed.proj.weight"] == pytest.approx(blocks[0] / 2)
    assert factors["norm.weight"] == blocks[-1] == 0.5


def test_a_module_that_knows_no_layers_takes_no_layer_decay():
    with pytest.raises(BackboneError, match="Linear does not say which layer .* Leave it out"):
        adapt("full", nn.Linear(3, 2), {"layer_decay": 0.5})
    with pytest.raises(ConfigError, match=r"layer_decay must lie in \(0, 1\], got 2"):
        adapt("full", plain(depth=6), {"layer_decay": 2.0})


def test_the_statistics_of_batch_norms_are_kept_with_the_values():
    adapted = adapt("full", plain(name="test_resnet"), {})
    before = adapted.state()

    adapted.train(True)
    adapted.embed(pictures())
    after = adapted.state()

    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("running" in name or "num_batches" in name for name in changed)


def test_of_clip_the_image_tower_alone_is_trained():
    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual, self.text = nn.Linear(4, 2), nn.Linear(3, 2)

    module = Clip()

    assert set(adapt("full", module, {}).trainable) == {"visual.weight", "visual.bias"}
    assert adapt("full", module, {}).embed(torch.ones(1, 4)).shape == (1, 2)
