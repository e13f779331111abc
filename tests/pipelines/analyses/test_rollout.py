"""Rollout: rows that sum to one, through grids that shrink, and masks where the patches are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featurecache.errors import BackboneError, ConfigError
from featurecache.peft import adapt
from pipelines.analyses.rollout import analyse, likeness, mask_of, placed, rollout, shrinking, single
from tests.pipelines.analyses.contract import subject

__all__ = ["subject"]


def maps(tokens: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, tokens, tokens, generator=draw, dtype=torch.float64).softmax(-1)


def test_what_comes_in_is_shared_out_whole_through_a_shrinking_grid_too():
    sizes = [(6, 8), (6, 8), (4, 6), (2, 4)]

    flow = rollout([maps(2 + rows * columns, seed) for seed, (rows, columns) in enumerate(sizes)], sizes, prefix=2)

    assert flow.shape == (2, 10, 50)
    torch.testing.assert_close(flow.sum(-1), torch.ones(2, 10, dtype=torch.float64))


def test_a_step_that_shrinks_takes_the_mean_of_the_window_that_the_patch_was_made_of():
    grid = torch.arange(20.0, dtype=torch.float64)

    found = shrinking((4, 5), (2, 3), 1) @ torch.cat([torch.tensor([7.0], dtype=torch.float64), grid])

    windows = grid.reshape(4, 5).unfold(0, 3, 1).unfold(1, 3, 1).mean((-1, -2))
    torch.testing.assert_close(found, torch.cat([torch.tensor([7.0], dtype=torch.float64), windows.flatten()]))


def test_blocks_that_attend_to_nothing_else_leave_the_class_token_to_itself():
    identity = torch.eye(5, dtype=torch.float64).expand(1, 2, 5, 5)

    assert mask_of(rollout([identity] * 4)).abs().max() == 0


def test_a_mask_of_a_cropped_grid_stands_in_the_middle_of_the_image():
    found = placed(torch.arange(6.0)[None], (2, 3), (4, 5))

    assert found[0, 1:3, 1:4].flatten().tolist() == list(range(6))
    assert int(found.isnan().sum()) == 20 - 6


def test_without_a_class_token_patches_are_compared_with_their_mean():
    tokens = torch.randn(2, 4, 3)

    found = likeness(tokens, prefix=0)

    torch.testing.assert_close(found[0, 1], torch.cosine_similarity(tokens[0].mean(0), tokens[0, 1], dim=0))


def test_the_masks_are_those_of_the_attention_that_the_model_computes(subject):
    found = analyse([subject], subject.ids[:2], 2, of="attention", blocks="3").section.values["masks"]["a model"]

    tokens = subject.trunk._pos_embed(subject.trunk.patch_embed(subject.images(subject.ids[:2])))
    for block in subject.trunk.blocks[:3]:
        tokens = block(tokens)
    attention = subject.trunk.blocks[3].attn
    query, key, _ = (
        attention.qkv(subject.trunk.blocks[3].norm1(tokens)).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    )
    weights = (query.transpose(1, 2) @ key.transpose(1, 2).mT * attention.scale).softmax(-1)
    wanted = single(weights).reshape(2, 6, 6)
    np.testing.assert_allclose([found[name] for name in subject.ids[:2]], wanted.detach(), rtol=1e-4, atol=1e-6)


def test_blocks_must_be_neighbours_that_the_model_has(subject):
    for blocks, said in (("0-6", "neighbours among 0-5 of a model"), ("0,2", "got '0,2'"), ("few", "all, or indices")):
        with pytest.raises(ConfigError, match=said):
            analyse([subject], subject.ids[:1], 1, blocks=blocks)
    with pytest.raises(ConfigError, match="power must be positive, got 0"):
        analyse([subject], subject.ids[:1], 1, power=0.0)


def test_a_model_whose_grid_shrinks_is_seen_on_the_whole_image_or_on_what_is_left(subject):
    adapt("ila", subject.backbone.module, {})

    whole = analyse([subject], subject.ids[:1], 1).section.values["masks"]["a model"][subject.ids[0]]
    later = analyse([subject], subject.ids[:1], 1, blocks="4-5").section.values["masks"]["a model"][subject.ids[0]]

    assert np.isfinite(whole).all() and np.shape(whole) == (6, 6)
    assert np.isfinite(later)[2:4, 2:4].all() and np.isnan(later).sum() == 32


def test_tokens_on_no_grid_are_refused(subject, monkeypatch):
    monkeypatch.setattr(type(subject), "size_of", lambda self, tokens: None)

    with pytest.raises(BackboneError, match="tokens, which lie on no part of its grid of 6x6 patches"):
        analyse([subject], subject.ids[:1], 1)
