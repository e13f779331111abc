"""The linear probe is one affine map of the standardised arrays, joined as asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from featurecache.errors import ConfigError
from heads.linear import build, solve_together
from heads.ridge import build as ridge
from tests.heads.samples import LAYERS, batches, joined, spec_of

EQUAL = {"layers/cls/00": 8, "layers/cls/01": 8}


def test_logits_are_the_affine_map_of_the_concatenated_arrays():
    batch = joined(batches(widths=LAYERS))
    head = build(spec_of(widths=LAYERS))

    by_hand = torch.cat(list(batch.arrays.values()), dim=1) @ head.map.weight.T + head.map.bias

    assert torch.allclose(head(batch.arrays), by_hand, atol=1e-5)


def test_layers_of_equal_width_can_be_averaged():
    batch = joined(batches(widths=EQUAL))
    head = build(replace(spec_of(widths=EQUAL), combine="mean"))

    by_hand = head.map((batch.arrays["layers/cls/00"] + batch.arrays["layers/cls/01"]) / 2)

    assert head.map.in_features == 8
    assert torch.allclose(head(batch.arrays), by_hand, atol=1e-5)


def test_arrays_are_joined_in_the_order_of_the_spec_whatever_the_order_of_the_batch():
    batch = joined(batches(widths=LAYERS))
    head = build(spec_of(widths=LAYERS))

    backwards = dict(reversed(batch.arrays.items()))

    assert torch.equal(head(backwards), head(batch.arrays))


def test_without_bias_zero_gives_zero():
    head = build(spec_of(), bias=False)

    assert head.map.bias is None
    assert torch.equal(head({"layers/cls/05": torch.zeros(2, 8)}), torch.zeros(2, 4))


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_it_can_start_where_the_closed_form_ends_and_learn_on(task):
    parts = batches(task, widths=LAYERS)
    probe, heads = (
        ridge(spec_of(task, widths=LAYERS)), [build(spec_of(task, widths=LAYERS), start="ridge") for _ in range(2)]
    )  # fmt: skip

    chosen = solve_together(heads, parts)

    assert chosen == [probe.solve(parts)] * 2
    for head in heads:
        torch.testing.assert_close(head(joined(parts).arrays), probe(joined(parts).arrays))
        assert head.map.weight.requires_grad


def test_a_start_with_a_bias_and_none_are_not_both_to_be_had():
    with pytest.raises(ConfigError, match="start=ridge sets a bias"):
        build(spec_of(), bias=False, start="ridge")
