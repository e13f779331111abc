"""The perceptron is its affine maps with the non-linearity between them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from featurecache.errors import ConfigError
from heads._checkpoint import build_head
from heads.mlp import build
from tests.heads.samples import LAYERS, batches, joined, spec_of

BY_HAND = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "relu": lambda x: x.clamp_min(0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: 1 - 2 / (torch.exp(2 * x) + 1),
}


@pytest.mark.parametrize("activation", BY_HAND)
@pytest.mark.parametrize("depth", [1, 3])
def test_logits_are_affine_maps_with_the_function_between_them(activation, depth):
    arrays = joined(batches(widths=LAYERS)).arrays
    head = build(spec_of(widths=LAYERS), width=7, depth=depth, activation=activation)

    x = torch.cat(list(arrays.values()), dim=1)
    for layer in (module for module in head.hidden if isinstance(module, nn.Linear)):
        x = BY_HAND[activation](x @ layer.weight.T + layer.bias)

    torch.testing.assert_close(head(arrays), x @ head.map.weight.T + head.map.bias, rtol=1e-4, atol=1e-5)


def test_norm_gives_every_row_mean_zero_and_deviation_one_before_the_function():
    seen = []
    head = build(spec_of(), width=64, norm=True)
    next(m for m in head.hidden if isinstance(m, nn.GELU)).register_forward_pre_hook(lambda m, x: seen.append(x[0]))

    head(joined(batches()).arrays)

    torch.testing.assert_close(seen[0].mean(1), torch.zeros(90), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].std(1, correction=0), torch.ones(90), atol=1e-3, rtol=0)


def test_it_learns_what_no_affine_map_can():
    """Opposite corners of a square are of one class."""
    torch.manual_seed(0)
    corners = torch.randn(200, 8)
    targets = ((corners[:, 0] > 0) ^ (corners[:, 1] > 0)).long()
    head = build(spec_of(classes=2), width=32)
    step = torch.optim.AdamW(head.parameters(), lr=1e-2)

    for _ in range(200):
        step.zero_grad()
        nn.functional.cross_entropy(head({"layers/cls/05": corners}), targets).backward()
        step.step()

    assert (head({"layers/cls/05": corners}).argmax(1) == targets).float().mean() > 0.95


def test_dropout_acts_in_training_only():
    head, arrays = build(spec_of(), dropout=0.5), joined(batches()).arrays

    assert not torch.equal(head(arrays), head(arrays))
    assert torch.equal(head.eval()(arrays), head(arrays))


def test_every_option_out_of_range_is_told():
    with pytest.raises(ConfigError) as refused:
        build(spec_of(), width=0, depth=0, dropout=1.0)

    assert refused.value.problems == [
        "width must be positive, got 0",
        "depth must be positive, got 0; without a hidden layer it is the head linear",
        "dropout must lie in [0, 1), got 1.0",
    ]


def test_an_activation_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ConfigError, match="activation must be one of gelu, relu, silu, tanh, got 'sine'"):
        build_head("mlp", spec_of(), {"activation": "sine"})
