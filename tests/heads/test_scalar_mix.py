"""The scalar mix against the sum written out, with and without maps to one width."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from featurecache.errors import ConfigError
from heads.scalar_mix import build
from tests.heads.samples import LAYERS, TOWER, batches, joined, spec_of


@torch.no_grad()
@pytest.mark.parametrize("widths", [TOWER, LAYERS], ids=["equal widths", "unequal widths"])
def test_logits_are_what_the_formula_says_row_by_row(widths):
    arrays = joined(batches(widths=widths)).arrays
    head = build(spec_of(widths=widths))
    torch.nn.init.normal_(head.scores)
    head.gamma.fill_(1.7)
    powers = [math.exp(score) for score in head.scores.tolist()]

    for row in (0, 41):
        mixed = torch.zeros(8)
        for number, (power, values) in enumerate(zip(powers, arrays.values(), strict=True)):
            x = values[row] if head.projections is None else head.projections[number].weight @ values[row]
            mixed += power / sum(powers) * x
        expected = 1.7 * (head.map.weight @ mixed) + head.map.bias
        torch.testing.assert_close(head(arrays)[row], expected, rtol=1e-4, atol=1e-4)


def test_layers_of_equal_width_are_mixed_as_they_are():
    assert build(spec_of(widths=TOWER)).projections is None
    assert [p.weight.shape for p in build(spec_of(widths=LAYERS)).projections] == [(8, d) for d in LAYERS.values()]


def test_it_starts_at_the_mean_of_the_layers():
    weights = build(spec_of(widths=TOWER)).weights()

    torch.testing.assert_close(weights, torch.full((3,), 1 / 3))


def test_it_learns_which_layer_tells():
    parts = batches(widths=TOWER, noise=0.1)
    arrays = dict(joined(parts).arrays)
    for name in list(arrays)[:2]:
        arrays[name] = torch.randn_like(arrays[name])
    arrays[list(arrays)[2]] = arrays[list(arrays)[2]] - 3
    head = build(spec_of(widths=TOWER))
    step = torch.optim.AdamW(head.parameters(), lr=0.05)

    for _ in range(100):
        step.zero_grad()
        torch.nn.functional.cross_entropy(head(arrays), joined(parts).targets).backward()
        step.step()

    assert head.weights()[2] > 0.5


def test_the_plain_mean_is_refused():
    with pytest.raises(ConfigError, match="scalar_mix weighs every layer by itself: --layers mean does not apply"):
        build(replace(spec_of(widths=TOWER), combine="mean"))
