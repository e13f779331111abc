"""Both forms of the head against their formulas written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from featurecache.errors import ConfigError
from heads._checkpoint import load_head, save_head
from heads.ifa import build
from tests.heads.samples import LAYERS, TOWER, batches, joined, spec_of


def test_concat_is_a_sum_of_one_affine_map_for_every_layer():
    arrays = joined(batches(widths=LAYERS)).arrays
    head = build(spec_of(widths=LAYERS))

    pieces = head.map.weight.split(list(LAYERS.values()), dim=1)
    by_hand = head.map.bias + sum(x @ piece.T for x, piece in zip(arrays.values(), pieces, strict=True))

    torch.testing.assert_close(head(arrays), by_hand, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_layers_is_a_weighted_sum_then_relu_layer_norm_and_the_classes():
    arrays = joined(batches(widths=TOWER)).arrays
    head = build(spec_of(widths=TOWER), aggregate="layers")

    mixed = head.layers.bias + sum(w * x for w, x in zip(head.layers.weight[0], arrays.values(), strict=True))
    kept = mixed.clamp_min(0)
    normed = (kept - kept.mean(1, keepdim=True)) / (kept.var(1, correction=0, keepdim=True) + 1e-5).sqrt()

    torch.testing.assert_close(head(arrays), normed @ head.map.weight.T + head.map.bias, rtol=1e-4, atol=1e-4)


def test_layers_comes_back_from_a_checkpoint(tmp_path):
    arrays = joined(batches(widths=TOWER)).arrays
    head = build(spec_of(widths=TOWER), aggregate="layers")

    save_head(tmp_path, head, "ifa", spec_of(widths=TOWER), {"aggregate": "layers"})

    assert torch.equal(load_head(tmp_path)[0](arrays), head(arrays))


@pytest.mark.parametrize("aggregate", ["concat", "layers"])
def test_dropout_acts_in_training_only(aggregate):
    head, arrays = build(spec_of(widths=TOWER), aggregate=aggregate, dropout=0.5), joined(batches(widths=TOWER)).arrays

    assert not torch.equal(head(arrays), head(arrays))
    assert torch.equal(head.eval()(arrays), head(arrays))


def test_every_reason_against_it_is_told():
    with pytest.raises(ConfigError) as refused:
        build(replace(spec_of(widths=LAYERS), combine="mean"), aggregate="layers", dropout=1.0)

    assert refused.value.problems[:2] == [
        "dropout must lie in [0, 1), got 1.0",
        "ifa reads every layer by itself: --layers mean does not apply",
    ]
    assert "aggregate=layers needs equal widths, got layers/cls/00 6" in refused.value.problems[2]
